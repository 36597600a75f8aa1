//! The suite on the embedded engine: each behaviour is a test.

use conformance::{Harness, suite};
use rtp_mgr::Engine;

macro_rules! tests {
    ($($module:ident { $($name:ident)* })*) => {
        $(mod $module {
            $(#[test]
            fn $name() {
                super::test(concat!(stringify!($module), "::", stringify!($name)));
            })*
        })*
    };
}
conformance::behaviours!(tests);

fn test(name: &str) {
    suite::test(name, &Harness::new(Engine::User, env!("CARGO_BIN_EXE_conformance")));
}

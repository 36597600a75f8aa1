//! The list of behaviours, and running one of them.

use std::any::Any;
use std::panic::{self, AssertUnwindSafe};
use std::process::{Command, Stdio};

use crate::harness::{Harness, NotRun};

/// Something that every engine has to do.
#[derive(Clone, Copy, Debug)]
pub struct Behaviour {
    module: &'static str,
    name: &'static str,
    run: fn(&Harness) -> Outcome,
}

/// What became of a behaviour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The engine does it.
    Holds,
    /// It could not be looked at.
    NotRun(NotRun),
    /// The engine does something else.
    Fails(String),
}

impl From<()> for Outcome {
    fn from((): ()) -> Self {
        Self::Holds
    }
}

impl From<Result<(), NotRun>> for Outcome {
    fn from(result: Result<(), NotRun>) -> Self {
        match result {
            Ok(()) => Self::Holds,
            Err(reason) => Self::NotRun(reason),
        }
    }
}

macro_rules! list {
    ($($module:ident { $($name:ident)* })*) => {
        /// Every behaviour.
        pub const BEHAVIOURS: &[Behaviour] = &[
            $($(Behaviour {
                module: stringify!($module),
                name: stringify!($name),
                run: |harness| crate::behaviours::$module::$name(harness).into(),
            },)*)*
        ];
    };
}
crate::behaviours!(list);

/// Behaviours of this module change or look at what a process has only once: each gets a process of
/// its own.
const ALONE: &str = "alone";

/// Exit status of a process that could not run its one behaviour; its last line says why.
pub(crate) const NOT_RUN: u8 = 77;

impl Behaviour {
    /// Its name, module included.
    pub fn name(&self) -> String {
        format!("{}::{}", self.module, self.name)
    }

    /// The behaviour called `name`.
    pub fn find(name: &str) -> Option<&'static Self> {
        BEHAVIOURS.iter().find(|behaviour| behaviour.name() == name)
    }

    /// Tries it, in a process of its own if it takes one.
    pub fn run(&self, harness: &Harness) -> Outcome {
        if self.module == ALONE { self.run_apart(harness) } else { self.run_here(harness) }
    }

    /// Tries it in this process.
    pub fn run_here(&self, harness: &Harness) -> Outcome {
        match panic::catch_unwind(AssertUnwindSafe(|| (self.run)(harness))) {
            Ok(outcome) => outcome,
            Err(payload) => Outcome::Fails(message(payload.as_ref())),
        }
    }

    fn run_apart(&self, harness: &Harness) -> Outcome {
        let output = Command::new(harness.program())
            .arg("--engine")
            .arg(format!("{:?}", harness.engine()).to_lowercase())
            .args(["--here", &self.name()])
            .stdin(Stdio::null())
            .output();
        let output = match output {
            Ok(output) => output,
            Err(error) => {
                return Outcome::Fails(format!("{}: {error}", harness.program().display()));
            }
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        match output.status.code() {
            Some(0) => Outcome::Holds,
            Some(code) if code == i32::from(NOT_RUN) => {
                Outcome::NotRun(NotRun::because(text(&output.stdout)))
            }
            _ => Outcome::Fails(format!(
                "{}\n{}\n{}",
                output.status,
                text(&output.stdout),
                text(&output.stderr)
            )),
        }
    }
}

/// What a panic said.
pub(crate) fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panicked".to_owned())
}

/// Tries the behaviour called `name` as a libtest test: panics where it fails.
pub fn test(name: &str, harness: &Harness) {
    let behaviour = Behaviour::find(name).unwrap_or_else(|| panic!("no behaviour {name}"));
    match behaviour.run(harness) {
        Outcome::Holds => {}
        Outcome::NotRun(reason) => println!("not run: {reason}"),
        Outcome::Fails(message) => panic!("{message}"),
    }
}

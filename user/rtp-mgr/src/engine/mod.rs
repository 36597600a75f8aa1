//! The embedded engine: streams served by threads of this process.
#[allow(dead_code)] // Until the context drives it.
pub(crate) mod receive;

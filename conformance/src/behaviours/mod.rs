//! What every engine has to do. One module for each part of the API; [`crate::behaviours!`] lists
//! them.

pub(crate) mod alone;
pub(crate) mod arrival;
pub(crate) mod attached;
pub(crate) mod books;
pub(crate) mod hostile;
pub(crate) mod legs;
pub(crate) mod many;
pub(crate) mod offload;
pub(crate) mod ordered;
pub(crate) mod overflow;
pub(crate) mod readers;
pub(crate) mod settings;
pub(crate) mod side;
pub(crate) mod simulated;
pub(crate) mod stopping;
pub(crate) mod transmit;
pub(crate) mod waiting;

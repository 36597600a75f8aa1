//! Control groups.

use std::fs;

use crate::sockets::until;

/// A control group that this process is in, until it is dropped.
#[derive(Debug)]
pub struct Group(String);

impl Group {
    /// A new one.
    pub fn new(name: &str) -> Self {
        let group = Self::empty(name);
        group.enter();
        group
    }

    /// A new one, which this process is not in.
    pub fn empty(name: &str) -> Self {
        let path = format!("/sys/fs/cgroup/{name}");
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &str {
        &self.0
    }

    /// Has this process in it.
    pub fn enter(&self) {
        self.set("cgroup.procs", &std::process::id().to_string());
    }

    /// Writes one of its files.
    pub fn set(&self, file: &str, value: &str) {
        let path = format!("{}/{file}", self.0);
        fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
    }

    /// Reads one of its files.
    pub fn get(&self, file: &str) -> String {
        let path = format!("{}/{file}", self.0);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        fs::write("/sys/fs/cgroup/cgroup.procs", std::process::id().to_string()).unwrap();
        until("the group is empty", || fs::remove_dir(&self.0).is_ok());
    }
}

//! The kernel's trace events.

use std::fs;
use std::io;

/// The kernel's tracing files.
pub fn tracing() -> &'static str {
    let tracing = "/sys/kernel/tracing";
    if !fs::exists(format!("{tracing}/events")).unwrap() {
        let (source, target, kind) = (c"tracefs", c"/sys/kernel/tracing", c"tracefs");
        // SAFETY: Texts.
        let mounted = unsafe {
            libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, std::ptr::null())
        };
        assert_eq!(mounted, 0, "{}", io::Error::last_os_error());
    }
    tracing
}

/// Counts an event of the module, by one of its fields, while this lives.
#[derive(Debug)]
pub struct Counts {
    event: String,
    field: &'static str,
}

impl Counts {
    /// From now on.
    pub fn of(event: &str, field: &'static str) -> Self {
        let this = Self { event: format!("{}/events/rtp_mgr/{event}", tracing()), field };
        this.trigger("");
        this
    }

    fn trigger(&self, not: &str) {
        let trigger = format!("{not}hist:keys={}", self.field);
        fs::write(format!("{}/trigger", self.event), trigger).unwrap();
    }

    /// Of those with this value.
    pub fn get(&self, value: u64) -> u64 {
        let table = fs::read_to_string(format!("{}/hist", self.event)).unwrap();
        let number = |text: &str| -> u64 { text.trim_matches(['}', ' ']).parse().unwrap() };
        let line = table.lines().filter(|line| line.starts_with('{')).find(|line| {
            let key = line.split_once(':').unwrap().1;
            number(key.split_once('}').unwrap().0) == value
        });
        line.map_or(0, |line| number(line.rsplit_once("hitcount:").unwrap().1))
    }
}

impl Drop for Counts {
    fn drop(&mut self) {
        self.trigger("!");
    }
}

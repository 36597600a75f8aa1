//! Programs run beside each other: started, waited for within a limit, and ended with their guard.
//!
//! Nothing here ends a process that it did not start.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(5);
/// How much of a program's complaints is shown.
const COMPLAINT_LINES: usize = 12;

/// A running program. Its output goes to files; dropping it ends it.
#[derive(Debug)]
pub struct Child {
    name: String,
    process: std::process::Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Child {
    /// Starts a program with no input. `directory` gets `NAME.out` and `NAME.err`.
    pub fn start(directory: &Path, name: &str, command: &mut Command) -> Result<Self> {
        let stdout = directory.join(format!("{name}.out"));
        let stderr = directory.join(format!("{name}.err"));
        let process = command
            .stdin(Stdio::null())
            .stdout(File::create(&stdout)?)
            .stderr(File::create(&stderr)?)
            .spawn()
            .with_context(|| format!("{name}: {command:?} could not be started"))?;
        Ok(Self { name: name.to_owned(), process, stdout, stderr })
    }

    /// What it wrote to standard output so far.
    pub fn stdout(&self) -> Result<String> {
        read_text(&self.stdout)
    }

    /// What it wrote to standard error so far.
    pub fn stderr(&self) -> Result<String> {
        read_text(&self.stderr)
    }

    /// Waits until `condition` holds for the running program.
    ///
    /// # Errors
    /// The program ended before, or `limit` passed.
    pub fn until(
        &mut self,
        what: &str,
        limit: Duration,
        mut condition: impl FnMut(&Self) -> Result<bool>,
    ) -> Result<()> {
        let start = Instant::now();
        loop {
            if condition(self)? {
                return Ok(());
            }
            if let Some(status) = self.process.try_wait()? {
                bail!("{}: ended ({status}) before {what}{}", self.name, self.complaint());
            }
            if start.elapsed() > limit {
                bail!("{}: not {what} within {limit:?}{}", self.name, self.complaint());
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until the program ends by itself.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait()? {
                return Ok(status);
            }
            if start.elapsed() > limit {
                bail!("{}: still running after {limit:?}{}", self.name, self.complaint());
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until the program ends by itself, with success; returns its standard output.
    pub fn success(mut self, limit: Duration) -> Result<String> {
        let status = self.wait(limit)?;
        if !status.success() {
            bail!("{}: {status}{}", self.name, self.complaint());
        }
        self.stdout()
    }

    /// The last lines of standard error, to be appended to a message.
    fn complaint(&self) -> String {
        let text = self.stderr().unwrap_or_default();
        let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        if lines.is_empty() {
            return String::new();
        }
        let last = lines[lines.len().saturating_sub(COMPLAINT_LINES)..].join("\n    ");
        format!("; it said:\n    {last}")
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to end, and waiting returns at once.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs a program to its end and returns its standard output.
pub fn output(
    directory: &Path,
    name: &str,
    command: &mut Command,
    limit: Duration,
) -> Result<String> {
    Child::start(directory, name, command)?.success(limit)
}

fn read_text(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn output_and_success_are_told() {
        let directory = tempfile::tempdir().unwrap();
        let text = output(directory.path(), "echo", &mut shell("echo yes"), LIMIT).unwrap();
        assert_eq!(text, "yes\n");
    }

    #[test]
    fn a_failure_comes_with_what_the_program_said() {
        let directory = tempfile::tempdir().unwrap();
        let mut command = shell("echo 'no such thing' >&2; exit 3");
        let error = output(directory.path(), "sh", &mut command, LIMIT).unwrap_err().to_string();
        assert!(error.contains("exit status: 3"), "{error}");
        assert!(error.contains("no such thing"), "{error}");
    }

    #[test]
    fn waiting_is_bounded_and_the_guard_ends_the_program() {
        let directory = tempfile::tempdir().unwrap();
        let mut child =
            Child::start(directory.path(), "sleep", &mut shell("exec sleep 600")).unwrap();
        let process = PathBuf::from(format!("/proc/{}", child.process.id()));
        assert!(child.wait(Duration::from_millis(20)).is_err());
        assert!(process.exists());
        drop(child);
        assert!(!process.exists());
    }

    #[test]
    fn a_program_that_ends_early_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let mut child = Child::start(directory.path(), "true", &mut shell("exit 0")).unwrap();
        let error = child.until("ready", LIMIT, |_| Ok(false)).unwrap_err().to_string();
        assert!(error.contains("before ready"), "{error}");
    }

    #[test]
    fn a_condition_on_the_output_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let mut child =
            Child::start(directory.path(), "sh", &mut shell("echo ready; exec sleep 600")).unwrap();
        child.until("ready", LIMIT, |child| Ok(child.stdout()?.contains("ready\n"))).unwrap();
    }
}

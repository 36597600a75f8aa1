//! Live figures on a terminal: a few lines on standard error that are redrawn in place.
//!
//! What lives here: drawing, and when. The lines themselves come from [`super::text`], which renders the same
//! structs that the JSON is made of. Nothing is drawn when standard error is not a terminal.

use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::signals::LOOK;

/// How often the figures are redrawn.
pub const REDRAW: Duration = Duration::from_millis(200);

/// Lines on the terminal.
#[derive(Debug)]
pub struct Panel {
    all: MultiProgress,
    lines: Vec<ProgressBar>,
}

impl Panel {
    /// A panel on standard error; hidden when `show` is false or no terminal is there.
    pub fn new(show: bool) -> Self {
        let target = if show {
            ProgressDrawTarget::stderr_with_hz(20)
        } else {
            ProgressDrawTarget::hidden()
        };
        Self { all: MultiProgress::with_draw_target(target), lines: Vec::new() }
    }

    /// True when somebody can see it.
    pub fn visible(&self) -> bool {
        !self.all.is_hidden()
    }

    /// Shows these lines in place of the last ones.
    pub fn show(&mut self, lines: &[String]) {
        while self.lines.len() < lines.len() {
            let line = self.all.add(ProgressBar::new_spinner());
            line.set_style(
                ProgressStyle::with_template("{wide_msg}")
                    .unwrap_or_else(|_| ProgressStyle::default_spinner()),
            );
            self.lines.push(line);
        }
        while self.lines.len() > lines.len() {
            if let Some(line) = self.lines.pop() {
                line.finish_and_clear();
            }
        }
        for (line, text) in self.lines.iter().zip(lines) {
            line.set_message(text.clone());
            line.tick();
        }
    }

    /// Prints a line above the panel (to standard error when the panel is hidden).
    pub fn note(&self, text: &str) {
        if self.visible() {
            // A terminal that has gone away shows nothing; the command goes on.
            let _ = self.all.println(text);
        } else {
            use std::io::Write;
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }

    /// Takes the lines away.
    pub fn clear(&mut self) {
        for line in self.lines.drain(..) {
            line.finish_and_clear();
        }
    }
}

/// When the next JSON line and the next redrawing are due.
#[derive(Debug)]
pub struct Timetable {
    interval: Duration,
    line: Option<Instant>,
    redraw: Option<Instant>,
}

impl Timetable {
    /// From now on: a JSON line every `interval` when there is somewhere to print it, the panel when
    /// somebody can see it.
    pub fn new(interval: Duration, json: bool, panel: &Panel) -> Self {
        let now = Instant::now();
        Self { interval, line: json.then_some(now), redraw: panel.visible().then_some(now) }
    }

    /// Whether a JSON line is due; if so, the next one is an interval later.
    pub fn line_is_due(&mut self, now: Instant) -> bool {
        due(&mut self.line, self.interval, now)
    }

    /// Whether redrawing is due; if so, the next one is [`REDRAW`] later.
    pub fn redraw_is_due(&mut self, now: Instant) -> bool {
        due(&mut self.redraw, REDRAW, now)
    }

    /// How long until the next of them, at most [`LOOK`].
    pub fn patience(&self, now: Instant) -> Duration {
        let next = [self.line, self.redraw].into_iter().flatten().min();
        next.map_or(LOOK, |next| next.saturating_duration_since(now).min(LOOK))
    }
}

/// Moves a time that has come by `interval`, or to the present when it is further behind.
fn due(at: &mut Option<Instant>, interval: Duration, now: Instant) -> bool {
    match at {
        Some(time) if *time <= now => {
            *time = (*time + interval).max(now);
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_keep_their_rhythm_and_do_not_pile_up() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut at = Some(start);
        assert!(due(&mut at, second, start));
        assert!(!due(&mut at, second, start + second / 2));
        // A little late: the next one is not.
        assert!(due(&mut at, second, start + second + second / 10));
        assert_eq!(at, Some(start + 2 * second));
        // Very late: one line, not several at once.
        assert!(due(&mut at, second, start + 10 * second));
        assert_eq!(at, Some(start + 10 * second));
        assert!(!due(&mut None, second, start));
    }
}

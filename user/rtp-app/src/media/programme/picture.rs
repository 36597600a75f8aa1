//! What the programme shows: colour bars, a grey scale, a ball in motion, a running time code.

/// Picture size in pixels.
pub(super) const WIDTH: usize = 640;
pub(super) const HEIGHT: usize = 360;

/// Frames per second.
pub(super) const FRAME_RATE: u32 = 25;

/// Coded lines: whole macroblocks; those below [`HEIGHT`] are not shown.
const LINES: usize = HEIGHT.next_multiple_of(16);

/// ITU-R BT.601 luma and colour differences.
type Colour = [u8; 3];

/// The 75 % bars of ITU-R BT.471: white, yellow, cyan, green, magenta, red, blue, black.
const BARS: [Colour; 8] = [
    [180, 128, 128],
    [162, 44, 142],
    [131, 156, 44],
    [112, 72, 58],
    [84, 184, 198],
    [65, 100, 212],
    [35, 212, 114],
    [16, 128, 128],
];

const BLACK: Colour = [16, 128, 128];
const WHITE: Colour = [235, 128, 128];

const BAR_LINES: usize = 240;
const RAMP_LINES: usize = 304;
const BALL_RADIUS: i32 = 44;
const TEXT_SCALE: usize = 5;
const TEXT_LINE: usize = 314;

/// A picture in planes, colours at half the resolution (4:2:0).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Picture {
    pub luma: Plane,
    pub chroma: [Plane; 2],
}

/// Samples line by line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plane {
    pub width: usize,
    pub samples: Vec<u8>,
}

impl Plane {
    fn new(width: usize, lines: usize, value: u8) -> Self {
        Self { width, samples: vec![value; width * lines] }
    }

    /// The 8 x 8 samples at `x`, `y`.
    pub fn block(&self, x: usize, y: usize) -> [u8; 64] {
        let mut block = [0; 64];
        for (line, to) in block.chunks_exact_mut(8).enumerate() {
            let at = (y + line) * self.width + x;
            to.copy_from_slice(&self.samples[at..at + 8]);
        }
        block
    }
}

impl Picture {
    /// The picture number `frame`.
    pub fn draw(frame: u32) -> Self {
        let mut picture = Self {
            luma: Plane::new(WIDTH, LINES, BLACK[0]),
            chroma: [1, 2].map(|n| Plane::new(WIDTH / 2, LINES / 2, BLACK[n])),
        };
        picture.draw_bars();
        picture.draw_ball(frame as i32);
        picture.draw_text("RTP MANAGER", 24);
        picture.draw_text(&time_code(frame), 380);
        picture
    }

    fn set(&mut self, x: usize, y: usize, [luma, blue, red]: Colour) {
        self.luma.samples[y * WIDTH + x] = luma;
        let at = y / 2 * (WIDTH / 2) + x / 2;
        self.chroma[0].samples[at] = blue;
        self.chroma[1].samples[at] = red;
    }

    fn draw_bars(&mut self) {
        for x in 0..WIDTH {
            let bar = BARS[x * BARS.len() / WIDTH];
            let grey = [16 + (x / 16 * 219 / (WIDTH / 16 - 1)) as u8, 128, 128];
            (0..BAR_LINES).for_each(|y| self.set(x, y, bar));
            (BAR_LINES..RAMP_LINES).for_each(|y| self.set(x, y, grey));
        }
    }

    /// A shaded ball that bounces between the edges of the bars.
    fn draw_ball(&mut self, frame: i32) {
        let x0 = BALL_RADIUS + bounce(frame * 7, WIDTH as i32 - 2 * BALL_RADIUS);
        let y0 = BALL_RADIUS + bounce(frame * 4, BAR_LINES as i32 - 2 * BALL_RADIUS);
        for y in -BALL_RADIUS..BALL_RADIUS {
            for x in -BALL_RADIUS..BALL_RADIUS {
                if x * x + y * y < BALL_RADIUS * BALL_RADIUS {
                    let shade = 150 - x - y / 2;
                    self.set((x0 + x) as usize, (y0 + y) as usize, [shade as u8, 110, 150]);
                }
            }
        }
    }

    fn draw_text(&mut self, text: &str, left: usize) {
        for (n, letter) in text.chars().enumerate() {
            for (line, bits) in glyph(letter).into_iter().enumerate() {
                for column in (0..5).filter(|column| bits >> (4 - column) & 1 == 1) {
                    let x = left + (n * 6 + column) * TEXT_SCALE;
                    self.fill(x, TEXT_LINE + line * TEXT_SCALE);
                }
            }
        }
    }

    fn fill(&mut self, x: usize, y: usize) {
        for y in y..y + TEXT_SCALE {
            (x..x + TEXT_SCALE).for_each(|x| self.set(x, y, WHITE));
        }
    }
}

/// A position that runs to and fro in `0..=span`.
fn bounce(way: i32, span: i32) -> i32 {
    span - (way % (2 * span) - span).abs()
}

/// Minutes, seconds and frames.
fn time_code(frame: u32) -> String {
    let seconds = frame / FRAME_RATE;
    format!("{:02}:{:02}:{:02}", seconds / 60 % 60, seconds % 60, frame % FRAME_RATE)
}

/// Seven lines of five pixels.
fn glyph(letter: char) -> [u8; 7] {
    match letter {
        '0' => [0x0e, 0x11, 0x13, 0x15, 0x19, 0x11, 0x0e],
        '1' => [0x04, 0x0c, 0x04, 0x04, 0x04, 0x04, 0x0e],
        '2' => [0x0e, 0x11, 0x01, 0x02, 0x04, 0x08, 0x1f],
        '3' => [0x1f, 0x02, 0x04, 0x02, 0x01, 0x11, 0x0e],
        '4' => [0x02, 0x06, 0x0a, 0x12, 0x1f, 0x02, 0x02],
        '5' => [0x1f, 0x10, 0x1e, 0x01, 0x01, 0x11, 0x0e],
        '6' => [0x06, 0x08, 0x10, 0x1e, 0x11, 0x11, 0x0e],
        '7' => [0x1f, 0x01, 0x02, 0x04, 0x08, 0x08, 0x08],
        '8' => [0x0e, 0x11, 0x11, 0x0e, 0x11, 0x11, 0x0e],
        '9' => [0x0e, 0x11, 0x11, 0x0f, 0x01, 0x02, 0x0c],
        ':' => [0x00, 0x0c, 0x0c, 0x00, 0x0c, 0x0c, 0x00],
        'A' => [0x0e, 0x11, 0x11, 0x1f, 0x11, 0x11, 0x11],
        'E' => [0x1f, 0x10, 0x10, 0x1e, 0x10, 0x10, 0x1f],
        'G' => [0x0e, 0x11, 0x10, 0x17, 0x11, 0x11, 0x0f],
        'M' => [0x11, 0x1b, 0x15, 0x15, 0x11, 0x11, 0x11],
        'N' => [0x11, 0x19, 0x15, 0x13, 0x11, 0x11, 0x11],
        'P' => [0x1e, 0x11, 0x11, 0x1e, 0x10, 0x10, 0x10],
        'R' => [0x1e, 0x11, 0x11, 0x1e, 0x14, 0x12, 0x11],
        'T' => [0x1f, 0x04, 0x04, 0x04, 0x04, 0x04, 0x04],
        _ => [0; 7],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_is_another_picture() {
        let first = Picture::draw(0);
        assert_eq!(first.luma.samples.len(), 640 * 368);
        assert_eq!(first.chroma[0].samples.len(), 320 * 184);
        let frames: Vec<_> = (0..60).map(Picture::draw).collect();
        for pair in frames.windows(2) {
            assert_ne!(pair[0], pair[1]);
        }
    }

    #[test]
    fn the_time_code_counts_frames() {
        assert_eq!(time_code(0), "00:00:00");
        assert_eq!(time_code(24), "00:00:24");
        assert_eq!(time_code(61 * 25 + 3), "01:01:03");
    }

    #[test]
    fn the_ball_turns_round_at_the_edges() {
        let positions: Vec<_> = (0..9).map(|way| bounce(way, 4)).collect();
        assert_eq!(positions, [0, 1, 2, 3, 4, 3, 2, 1, 0]);
    }
}

//! Text that is updated in place on a terminal, and changes line by line elsewhere.

use std::io::IsTerminal;

use crate::{error::Failure, output};

/// Where no terminal says how large it is.
const USUAL_SIZE: (usize, usize) = (120, 40);

/// A block of lines on standard output that replaces the one before.
pub struct LiveText {
    terminal: bool,
    drawn: usize,
}

impl LiveText {
    /// In place if standard output is a terminal.
    #[expect(clippy::new_without_default, reason = "what it does depends on the terminal")]
    pub fn new() -> Self {
        Self { terminal: std::io::stdout().is_terminal(), drawn: 0 }
    }

    /// Whether it is updated in place. If not, print changes instead of calling [`LiveText::draw`].
    pub fn is_in_place(&self) -> bool {
        self.terminal
    }

    /// Replaces what was drawn before. Lines that do not fit the terminal are cut, and counted where they are too many.
    ///
    /// # Errors
    /// If standard output is closed.
    pub fn draw(&mut self, text: &str) -> Result<(), Failure> {
        let (width, height) = terminal_size::terminal_size_of(std::io::stdout())
            .map_or(USUAL_SIZE, |(width, height)| (usize::from(width.0), usize::from(height.0)));
        let lines = fit(text, width, height);
        let mut frame = String::new();
        if self.drawn > 0 {
            frame.push_str(&format!("\x1b[{}A", self.drawn));
        }
        // To the end of each line, so that nothing flickers, and of what the last frame had more.
        lines.iter().for_each(|line| frame.push_str(&format!("{line}\x1b[K\n")));
        frame.push_str("\x1b[J");
        self.drawn = lines.len();
        output::write(&frame)
    }
}

/// The lines that fit, one row being left for the cursor.
fn fit(text: &str, width: usize, height: usize) -> Vec<String> {
    let most = height.saturating_sub(1).max(1);
    let all: Vec<&str> = text.lines().collect();
    let cut = |line: &&str| line.chars().take(width).collect::<String>();
    if all.len() <= most {
        return all.iter().map(cut).collect();
    }
    let mut lines: Vec<_> = all[..most - 1].iter().map(cut).collect();
    lines.push(format!("… and {} more", all.len() - (most - 1)).chars().take(width).collect());
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_never_scrolls() {
        assert_eq!(fit("a\nbcd\n", 2, 3), ["a", "bc"]);
        assert_eq!(fit("a\nb\nc\nd\n", 80, 3), ["a", "… and 3 more"]);
        assert_eq!(fit("a\nb", 80, 0), ["… and 2 more"]);
        assert!(fit("", 80, 24).is_empty());
    }
}

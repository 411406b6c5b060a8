//! `rookery rollouts watch`: a roll-out as it goes; in place on a terminal, one line a change elsewhere.

use std::io::IsTerminal;

use clap::Args;
use rookery_proto::v1::{GetRolloutRequest, Rollout, RolloutState};

use super::Target;
use super::show::{gateway_table, record, short, state, summary, version, wave};
use crate::client::explain;
use crate::error::Failure;
use crate::output;

/// Follows a roll-out until it is over. Fails if it does not end well.
#[derive(Args, Debug)]
pub(super) struct WatchArgs {
    /// Its id, or the beginning of it.
    id: String,
    #[command(flatten)]
    target: Target,
    /// Write one line of JSON for each change.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: WatchArgs) -> Result<(), Failure> {
    let mut client = args.target.connect().await?;
    let answer = client.watch_rollout(GetRolloutRequest { id: args.id }).await;
    let mut rollouts = answer.map_err(|status| explain(&status))?.into_inner();
    let mut frame = Frame::default();
    let in_place = std::io::stdout().is_terminal();
    let mut told = String::new();
    let mut last = None;
    while let Some(rollout) = rollouts.message().await.map_err(|status| explain(&status))? {
        if args.json {
            output::json_line(&record(&rollout))?;
        } else if in_place {
            output::write(&frame.next(&format!("{}\n{}", summary(&rollout), gateway_table(&rollout))))?;
        } else {
            let now = line(&rollout);
            if now != told {
                output::line(&now)?;
            }
            told = now;
        }
        last = Some(rollout);
    }
    match last {
        Some(rollout) => ended(&rollout),
        None => Err(Failure::new("the control plane said nothing about the roll-out")),
    }
}

/// A block of lines that replaces the one before.
#[derive(Default)]
struct Frame {
    drawn: usize,
}

/// Lines of a frame; what comes after them is counted. Those that need a look come first.
const MOST_LINES: usize = 30;

impl Frame {
    /// What to write so that `text` stands where the last one stood.
    fn next(&mut self, text: &str) -> String {
        let all = text.lines().count();
        let mut lines: Vec<_> = text.lines().take(MOST_LINES).map(str::to_owned).collect();
        if all > MOST_LINES {
            lines.push(format!("… and {} more", all - MOST_LINES));
        }
        // To the end of each line, so that nothing flickers, and of what the last one had more.
        let up = if self.drawn > 0 { format!("\x1b[{}A", self.drawn) } else { String::new() };
        self.drawn = lines.len();
        let body: String = lines.iter().map(|line| format!("{line}\x1b[K\n")).collect();
        format!("{up}{body}\x1b[J")
    }
}

fn line(rollout: &Rollout) -> String {
    let counts = rollout.counts.unwrap_or_default();
    format!(
        "{} wave {}: {} of {} serve {}, {} on the way, {} failed; {}",
        state(rollout.state()),
        wave(rollout),
        counts.serving,
        counts.selected,
        version(rollout),
        counts.switching,
        counts.failed,
        rollout.reason
    )
}

/// Whether it ended well.
fn ended(rollout: &Rollout) -> Result<(), Failure> {
    let id = short(&rollout.id);
    match rollout.state() {
        RolloutState::Done => Ok(()),
        RolloutState::RolledBack => {
            let why = rollout.reason.trim_start_matches("rolled back: ");
            Err(Failure::new(format!("the roll-out was rolled back: {why}"))
                .hint(format!("`rookery rollouts history {id}` says more")))
        }
        RolloutState::Aborted => Err(Failure::new(format!("the roll-out was aborted: {}", rollout.reason))),
        RolloutState::Unspecified
        | RolloutState::Running
        | RolloutState::Soaking
        | RolloutState::AwaitingApproval
        | RolloutState::AwaitingWindow
        | RolloutState::Paused
        | RolloutState::RollingBack => {
            Err(Failure::new("the control plane ended the watch").hint("it may be restarting; try again"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_replaces_the_one_before() {
        let mut frame = Frame::default();
        assert_eq!(frame.next("a\nb\n"), "a\x1b[K\nb\x1b[K\n\x1b[J");
        assert_eq!(frame.next("c\n"), "\x1b[2Ac\x1b[K\n\x1b[J");
        let long = (0..100).map(|n| format!("{n}\n")).collect::<String>();
        assert!(frame.next(&long).starts_with("\x1b[1A0") && frame.drawn == MOST_LINES + 1);
    }

    #[test]
    fn only_what_is_done_ended_well() {
        let rollout = |state: RolloutState| Rollout { state: state.into(), ..Default::default() };
        assert!(ended(&rollout(RolloutState::Done)).is_ok());
        for bad in [RolloutState::RolledBack, RolloutState::Aborted, RolloutState::Running] {
            assert_eq!(ended(&rollout(bad)).unwrap_err().exit().code(), 1, "{bad:?}");
        }
    }
}

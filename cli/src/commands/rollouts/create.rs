//! `rookery rollouts create`.

use std::time::Duration;

use clap::Args;
use rookery_proto::v1::{CreateRolloutRequest, Gates, Rollout, RolloutSpec};

use super::Target;
use super::show::{SHORT_ID, gateway_table, record, summary};
use crate::client::explain;
use crate::error::Failure;
use crate::output;

/// Begins a roll-out.
#[derive(Args, Debug)]
pub(super) struct CreateArgs {
    /// What to roll out: MODEL@VERSION; an alias in the place of the version means what it points at now.
    #[arg(long, value_name = "MODEL@VERSION", value_parser = model)]
    model: (String, String),
    /// Which gateways, such as site=berlin,board!=dev. Default: all.
    #[arg(long, value_name = "SELECTOR", default_value = "")]
    select: String,
    /// Gateways that a wave reaches, counted from the start: a number or a share. Once for each wave; the last is always
    /// 100%.
    #[arg(long = "wave", value_name = "SIZE", default_values = ["1", "10%", "100%"])]
    waves: Vec<String>,
    /// How long a wave has to serve before the next begins.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration)]
    soak: Duration,
    /// Share of the gateways reached that may fail before everything is taken back.
    #[arg(long, value_name = "PERCENT", default_value = "2%", value_parser = percent)]
    max_failed: f64,
    /// Share of the selected gateways that may be switching or broken at a time; one may always be.
    #[arg(long, value_name = "PERCENT", default_value = "20%", value_parser = percent)]
    max_unavailable: f64,
    /// When gateways may be switched, such as 'Mon-Fri 01:00-05:00 Europe/Berlin'; may be given several times. Default:
    /// always.
    #[arg(long = "window", value_name = "DAYS HH:MM-HH:MM ZONE")]
    windows: Vec<String>,
    /// Wait for `rookery rollouts approve` before each wave after the first.
    #[arg(long)]
    approve_each_wave: bool,
    /// How long a gateway may take from download to serving before it counts as failed. Default: 2h.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    gateway_timeout: Option<Duration>,
    #[command(flatten)]
    gates: GateArgs,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    target: Target,
    /// Write JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "What the version must show")]
struct GateArgs {
    /// Least decode speed on each gateway, as a share of what the bundle's profile promises. Default: 80%.
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    min_speed: Option<f64>,
    /// Highest temperature at the end of the probes, degrees Celsius. Default: 90.
    #[arg(long, value_name = "DEGREES")]
    max_celsius: Option<f64>,
    /// Percentage points more requests that may fail than with the version before. Default: 1%.
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    max_extra_errors: Option<f64>,
    /// How much longer the time to the first token may be than with the version before. Default: 50%.
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    max_extra_ttft: Option<f64>,
}

/// MODEL@VERSION.
fn model(text: &str) -> Result<(String, String), String> {
    match text.rsplit_once('@') {
        Some((model, version)) if !model.is_empty() && !version.is_empty() => {
            Ok((model.to_owned(), version.to_owned()))
        }
        Some(_) | None => Err("must be MODEL@VERSION".to_owned()),
    }
}

/// "2%" or "2".
fn percent(text: &str) -> Result<f64, String> {
    let number: f64 =
        text.trim_end_matches('%').trim().parse().map_err(|_| "must be a number, such as 2%")?;
    // How much is for the control plane to say.
    if number.is_finite() && number >= 0.0 { Ok(number) } else { Err("must not be negative".to_owned()) }
}

impl CreateArgs {
    fn spec(&self) -> RolloutSpec {
        RolloutSpec {
            model: self.model.0.clone(),
            version: self.model.1.clone(),
            selector: self.select.clone(),
            waves: self.waves.clone(),
            soak_s: self.soak.as_secs(),
            max_failed_percent: self.max_failed,
            max_unavailable_percent: self.max_unavailable,
            windows: self.windows.clone(),
            manual_approval: self.approve_each_wave,
            gateway_timeout_s: self.gateway_timeout.map_or(0, |timeout| timeout.as_secs()),
            gates: Some(Gates {
                min_speed_percent: self.gates.min_speed,
                max_celsius: self.gates.max_celsius,
                max_extra_error_percent: self.gates.max_extra_errors,
                max_extra_ttft_percent: self.gates.max_extra_ttft,
            }),
        }
    }
}

pub(super) async fn run(args: CreateArgs) -> Result<(), Failure> {
    let mut client = args.target.connect().await?;
    let request = CreateRolloutRequest { spec: Some(args.spec()), dry_run: args.dry_run };
    let rollout = client.create_rollout(request).await.map_err(|status| explain(&status))?.into_inner();
    if args.json {
        return output::json(&record(&rollout));
    }
    output::write(&summary(&rollout))?;
    if args.dry_run {
        return output::write(&format!("\n{}", gateway_table(&rollout)));
    }
    hint(&rollout);
    Ok(())
}

fn hint(rollout: &Rollout) {
    let id = rollout.id.get(..SHORT_ID).unwrap_or(&rollout.id);
    output::note(format_args!("follow it with `rookery rollouts watch {id}`"));
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        create: CreateArgs,
    }

    #[test]
    fn the_flags_say_what_is_asked_for() {
        let line = "x --model org/qwen@2.1 --select site=berlin,board!=dev --wave 1 --wave 10% --wave 100% --soak 10m \
            --max-failed 2% --max-unavailable 20 --min-speed 70% --approve-each-wave --gateway-timeout 1h";
        let mut words: Vec<_> = line.split_whitespace().collect();
        words.extend(["--window", "Mon-Fri 01:00-05:00 Europe/Berlin"]);
        let spec = Line::try_parse_from(words).unwrap().create.spec();
        let expected = RolloutSpec {
            model: "org/qwen".to_owned(),
            version: "2.1".to_owned(),
            selector: "site=berlin,board!=dev".to_owned(),
            waves: ["1", "10%", "100%"].map(str::to_owned).to_vec(),
            soak_s: 600,
            max_failed_percent: 2.0,
            max_unavailable_percent: 20.0,
            windows: vec!["Mon-Fri 01:00-05:00 Europe/Berlin".to_owned()],
            manual_approval: true,
            gateway_timeout_s: 3600,
            gates: Some(Gates { min_speed_percent: Some(70.0), ..Default::default() }),
        };
        assert_eq!(spec, expected);
        let usual = Line::try_parse_from(["x", "--model", "m@1"]).unwrap().create.spec();
        assert_eq!((usual.waves.len(), usual.soak_s, usual.gateway_timeout_s), (3, 600, 0));
        for wrong in [&["--model", "m"][..], &["--model", "@1"], &["--model", "m@1", "--max-failed", "x"]] {
            assert!(Line::try_parse_from([&["x"], wrong].concat()).is_err(), "{wrong:?}");
        }
    }
}

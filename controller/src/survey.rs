//! The verb that looks at a node before anything is installed.

use std::path::PathBuf;

use bulkhead_controller::{check, diagnostic::Diagnostics};
use bulkhead_dataplane::{check::facts, mark};
use clap::Args;

use crate::{
    PINS,
    ask::{Answer, pretty},
};

#[derive(Args)]
#[command(
    after_help = "The exit status is 1 when something keeps the node from being guarded, also when it could not be told; warnings leave it 0.\n\nRun it as root, in the network namespace of the node's VXLAN device. It takes some seconds, since it has the kernel verify all programs.\n\nExamples:\n  bulkhead check\n  bulkhead check --mark-mask 0x0fff0000 --json"
)]
pub(crate) struct CheckArgs {
    /// Directory on a bpffs that the agent will be given; it is not made.
    #[arg(long, default_value = PINS)]
    pins: PathBuf,
    /// Bits of packet marks that the agent will be given.
    #[arg(long, value_name = "MASK", default_value = "0x3f000fff", value_parser = mark::parse)]
    mark_mask: u32,
    /// JSON instead of text: the lines, and the facts behind them.
    #[arg(long)]
    json: bool,
}

pub(crate) fn check(args: &CheckArgs) -> Answer {
    let facts = facts(&args.pins, args.mark_mask);
    let lines = check::judge(&facts);
    let text = if args.json { pretty(&check::json(&facts, &lines)) } else { check::text(&lines) };
    Answer { text, notes: Diagnostics::default(), good: check::enforceable(&lines) }
}

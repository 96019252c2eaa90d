//! `bulkhead adopt`.

use std::{fmt::Write as _, path::PathBuf};

use bulkhead_controller::{
    diagnostic::{Diagnostic, Diagnostics},
    show::full_name,
};
use bulkhead_dataplane::connections::{self, Adopted, Fate};
use clap::{Args, ValueEnum};

use crate::{PINS, STATE, ask};

#[derive(Args)]
#[command(after_help = "Examples:\n  bulkhead adopt\n  bulkhead adopt --connections cut")]
pub(crate) struct AdoptArgs {
    /// What becomes of them.
    #[arg(long, value_enum, default_value_t)]
    connections: Connections,
    /// Directory on a bpffs that the agent was given.
    #[arg(long, default_value = PINS)]
    pins: PathBuf,
    /// State directory that the agent was given.
    #[arg(long, default_value = STATE)]
    state: PathBuf,
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum Connections {
    /// The programs judge them with their next packets.
    #[default]
    Keep,
    /// They end.
    Cut,
}

impl From<Connections> for Fate {
    fn from(connections: Connections) -> Self {
        match connections {
            Connections::Keep => Self::Keep,
            Connections::Cut => Self::Cut,
        }
    }
}

/// A line for each endpoint; not good when something could not be done for one.
pub(crate) fn adopt(args: &AdoptArgs) -> Result<ask::Answer, Diagnostics> {
    let adopted = connections::adopt(&args.pins, &args.state, args.connections.into())
        .map_err(|error| Diagnostic::nowhere(error.to_string()))?;
    let mut text = String::new();
    for Adopted { endpoint, link, result } in &adopted {
        let name = full_name(endpoint);
        let _ = match result {
            Ok(counts) => writeln!(text, "{name} on {link}: {counts}"),
            Err(why) => writeln!(text, "{name} on {link}: NOT DONE, {why}"),
        };
    }
    if adopted.is_empty() {
        text.push_str("no endpoint is guarded on this node\n");
    }
    let good = adopted.iter().all(|adopted| adopted.result.is_ok());
    Ok(ask::Answer { text, notes: Diagnostics::default(), good })
}

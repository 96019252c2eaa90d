//! `bulkhead audit`.

use std::{fmt::Write as _, path::PathBuf};

use bulkhead_controller::audit::{self, Broken, Verified, Wanted};
use clap::{Args, Subcommand};

#[derive(Subcommand)]
pub(crate) enum Audit {
    /// Check that no record of the audit log was changed, removed, repeated or moved.
    ///
    /// Each record carries the hash of the one before. There is no key: who can write the log can also write a whole new one, and records that are
    /// removed from its end leave nothing behind. Keep the head that is printed elsewhere, where who can write the log cannot, and give it as
    /// `--head` later: then both are found, up to that record. Whether what a record says was true when it was written, no hash can tell.
    ///
    /// The exit status is 1 when something is wrong.
    Verify(VerifyArgs),
}

#[derive(Args)]
pub(crate) struct VerifyArgs {
    /// State directory that the agent was given.
    #[arg(long, default_value = crate::STATE, conflicts_with = "files")]
    state: PathBuf,
    /// Files that are one chain in this order, instead of those of a state directory.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Hash of the head at an earlier time: that record must still be there.
    #[arg(long, value_name = "HASH", value_parser = hash)]
    head: Option<String>,
    /// Hash of the last record of files that are archived elsewhere: the first record must follow it.
    #[arg(long, value_name = "HASH", value_parser = hash)]
    after: Option<String>,
}

fn hash(text: &str) -> Result<String, String> {
    let text = text.to_ascii_lowercase();
    let hex = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    hex.then_some(text).ok_or_else(|| "a hash is 64 hex digits, as `bulkhead audit verify` prints them".to_owned())
}

/// What is found, for standard output.
pub(crate) fn verify(args: VerifyArgs) -> Result<String, Broken> {
    let wanted = Wanted { head: args.head, after: args.after };
    let (verified, files) = if args.files.is_empty() {
        audit::verify_state(&args.state, &wanted)?
    } else {
        (audit::verify(&args.files, &wanted)?, args.files.len())
    };
    Ok(text(&verified, files))
}

fn text(verified: &Verified, files: usize) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ =
        writeln!(text, "ok       {} records in {files} file{}", verified.records, if files == 1 { "" } else { "s" });
    if let Some((first, last)) = &verified.times {
        let _ = writeln!(text, "written  {first} to {last}");
    }
    for torn in &verified.torn {
        let _ = writeln!(
            text,
            "torn     {}:{}: {} bytes of a write that was cut short; the next record names them",
            torn.file.display(),
            torn.line,
            torn.bytes
        );
    }
    if let Some(since) = verified.since {
        let _ = writeln!(text, "since    {since} records after the head that was given");
    }
    match &verified.head {
        Some(head) => {
            let _ = writeln!(text, "head     {} (record {})", head.hash, head.seq);
        }
        None => text.push_str("head     none\n"),
    }
    text
}

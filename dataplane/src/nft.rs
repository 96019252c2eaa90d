//! nftables through the program `nft`, which starts in the network namespace of the calling thread: scripts are written in its language, listings are read
//! as JSON.

use std::io::Write as _;

use serde_json::Value;

use crate::{command, node::NodeError};

/// What a listing has, one object for each thing.
pub(crate) fn objects(args: &[&str]) -> Result<Vec<Value>, NodeError> {
    let listing = nft(args, "")?;
    let mut listing: Value = serde_json::from_slice(&listing)
        .map_err(|bad| error(&format!("read the output of `nft {}`", args.join(" ")), &bad.to_string()))?;
    let mut objects: Vec<Value> = serde_json::from_value(listing["nftables"].take()).unwrap_or_default();
    objects.retain(|object| object.get("metainfo").is_none());
    Ok(objects)
}

/// Whether there is such a program at all.
pub(crate) fn is_installed() -> bool {
    match command::start(&["nft"], &["--version"]) {
        Some((_, Ok(child))) => child.wait_with_output().is_ok(),
        Some((_, Err(_))) | None => false,
    }
}

/// Runs nft and returns its output.
pub(crate) fn nft(args: &[&str], input: &str) -> Result<Vec<u8>, NodeError> {
    run("nft", args, input)
}

fn run(program: &str, args: &[&str], input: &str) -> Result<Vec<u8>, NodeError> {
    let doing = || format!("run `nft {}`", args.join(" "));
    let (_, child) = command::start(&[program], args).ok_or_else(|| {
        error(&doing(), "the program is not installed; install the package `nftables` (apt-get install nftables, dnf install nftables)")
    })?;
    let mut child = child.map_err(|failed| error(&doing(), &failed.to_string()))?;
    // A script is far smaller than a pipe, so that this does not wait for what nft writes. A refusal shows in the
    // status.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().map_err(|failed| error(&doing(), &failed.to_string()))?;
    if output.status.success() {
        return written.map(|()| output.stdout).map_err(|failed| error(&doing(), &failed.to_string()));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let hint = if said.contains("Operation not permitted") {
        " (CAP_NET_ADMIN is needed)"
    } else if said.contains("not supported") {
        " (does the kernel have nf_tables? `modprobe nf_tables`)"
    } else {
        ""
    };
    Err(error(&doing(), &format!("{}{hint}", said.trim_end())))
}

pub(crate) fn error(doing: &str, why: &str) -> NodeError {
    NodeError::Kernel { doing: doing.to_owned(), why: why.to_owned() }
}

/// Without what the kernel gives: handles and counts; and without the table's comment, which not every nft lists.
pub(crate) fn without_state(object: &Value) -> Value {
    let mut object = object.clone();
    for (kind, content) in object.as_object_mut().into_iter().flatten() {
        let Some(content) = content.as_object_mut() else {
            continue;
        };
        content.remove("handle");
        match kind.as_str() {
            "counter" => ["packets", "bytes"].map(|count| content.remove(count)).into_iter().for_each(drop),
            "table" => drop(content.remove("comment")),
            _ => {}
        }
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_nft_is_told_with_its_remedy() {
        let refused = run("bulkhead-no-such-nft", &["list", "tables"], "").unwrap_err().to_string();
        assert!(refused.contains("run `nft list tables`: "), "{refused}");
        assert!(refused.contains("apt-get install nftables"), "{refused}");
    }
}

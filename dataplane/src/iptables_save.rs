//! Rules of iptables as its own programs print them, in the network namespace of the calling thread.

use std::{fs, io};

use crate::command;

/// Runs the first of these programs that there is; its name and what it wrote.
///
/// # Errors
/// None is installed, or it failed.
pub(crate) fn run(programs: &[&str]) -> Result<(String, String), String> {
    if let Some((program, child)) = command::start(programs, &[]) {
        let failed = |error: io::Error| format!("run `{program}`: {error}");
        let output = child.map_err(failed)?.wait_with_output().map_err(failed)?;
        if output.status.success() {
            return Ok((program.to_owned(), String::from_utf8_lossy(&output.stdout).into_owned()));
        }
        return Err(format!("run `{program}`: {}", String::from_utf8_lossy(&output.stderr).trim_end()));
    }
    Err(format!(
        "there are rules of iptables that only `{}` shows, and it is not installed; install the package `iptables`",
        programs[0]
    ))
}

/// The tables of the old iptables, of which nftables knows nothing; `prefix` is `ip` or `ip6`. `None` when there are none.
///
/// # Errors
/// As [`run`], or it cannot be told whether there are some.
pub(crate) fn legacy(prefix: &str) -> Result<Option<(String, String)>, String> {
    // Without the module there is no such list.
    let list = format!("/proc/thread-self/net/{prefix}_tables_names");
    match fs::read_to_string(&list) {
        Ok(names) if names.trim().is_empty() => Ok(None),
        Ok(_) => run(&[&format!("{prefix}tables-legacy-save"), &format!("{prefix}tables-save")]).map(Some),
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("read {list}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_told_with_its_remedy() {
        let why = run(&["bulkhead-no-such-save"]).unwrap_err();
        assert!(why.contains("bulkhead-no-such-save") && why.contains("install the package `iptables`"), "{why}");
    }
}

//! Who else on a node uses the mark: rules of nftables, iptables and policy routing, in the network namespace of the calling thread.
//!
//! What other eBPF programs, tc filters and sockets (`SO_MARK`) do with it is not to be seen here.

use std::{fs, io};

use bulkhead_ebpf::abi::mark;

use super::{iptables, nft, suggest};
use crate::{
    command, input_rule, network,
    node::{MarkConflicts, MarkUser},
};

/// Rules of others that use bits of this mask, and how to get out of their way with so many slots.
#[must_use]
pub fn conflicts(mask: u32, slots: u32) -> MarkConflicts {
    let (all, unread) = users();
    let mut users: Vec<MarkUser> = all.iter().filter(|user| user.bits() & mask != 0).cloned().collect();
    users.sort();
    users.dedup();
    let remedy = if users.is_empty() { String::new() } else { remedy(&all, slots) };
    MarkConflicts { users, unread, remedy }
}

/// Whoever uses all bits cannot be evaded; the others can.
fn remedy(users: &[MarkUser], slots: u32) -> String {
    let whole = users.iter().any(|user| user.bits() == u32::MAX);
    let taken =
        users.iter().map(MarkUser::bits).filter(|bits| *bits != u32::MAX).fold(mark::RESERVED, |all, bits| all | bits);
    let mut remedy = match suggest(taken, slots) {
        Some(mask) => format!("`--mark-mask {mask:#010x}` keeps out of the way of whoever uses some bits"),
        None => format!("no mask is left: {:#010x} are free, have one of these rules use fewer bits", !taken),
    };
    if whole {
        remedy.push_str("; a rule that uses all 32 bits meets any mask: give it one, as in `meta mark set meta mark | 0x1` or `--set-xmark 0x1/0x1`");
    }
    remedy
}

/// All rules that use the mark, and what could not be read.
fn users() -> (Vec<MarkUser>, Vec<String>) {
    let (mut users, mut unread) = (Vec::new(), Vec::new());
    let found = match input_rule::objects(&["-j", "-n", "list", "ruleset"]) {
        Ok(objects) => nft::read(&objects),
        Err(error) => {
            unread.push(error.to_string());
            nft::Found::default()
        }
    };
    let mut shown = found.users;
    for (family, prefix) in [("ip", "ip"), ("ip6", "ip6")] {
        // Where iptables speaks nftables, it alone can show its rules. What it has shown, nft has shown in part.
        if found.hidden.iter().any(|hidden| hidden == family) {
            match save(&[&format!("{prefix}tables-nft-save"), &format!("{prefix}tables-save")]) {
                Ok((program, text)) => {
                    let saved = iptables::read(&program, &text);
                    shown.retain(|((of, table), _)| of != family || !saved.tables.contains(table));
                    users.extend(saved.users);
                }
                Err(why) => unread.push(why),
            }
        }
        let legacy = [&*format!("{prefix}tables-legacy-save"), &format!("{prefix}tables-save")];
        match has_legacy_tables(prefix).and_then(|some| some.then(|| save(&legacy)).transpose()) {
            Ok(saved) => {
                users.extend(saved.into_iter().flat_map(|(program, text)| iptables::read(&program, &text).users));
            }
            Err(why) => unread.push(why),
        }
    }
    users.extend(shown.into_iter().map(|(_, user)| user));
    match network::mark_rules() {
        Ok(rules) => {
            users.extend(rules.into_iter().map(|rule| MarkUser { rule: rule.text, reads: rule.mask, writes: 0 }));
        }
        Err(error) => unread.push(error.to_string()),
    }
    (users, unread)
}

/// Whether there are tables that nftables knows nothing of. Without the module there is no list of them.
fn has_legacy_tables(prefix: &str) -> Result<bool, String> {
    let list = format!("/proc/thread-self/net/{prefix}_tables_names");
    match fs::read_to_string(&list) {
        Ok(names) => Ok(!names.trim().is_empty()),
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(format!("read {list}: {error}")),
    }
}

/// Runs the first of these programs that there is; its name and what it wrote.
fn save(programs: &[&str]) -> Result<(String, String), String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn user(bits: u32) -> MarkUser {
        MarkUser { rule: "some rule".to_owned(), reads: 0, writes: bits }
    }

    #[test]
    fn the_remedy_keeps_out_of_the_way_of_everybody() {
        assert!(remedy(&[user(0xffff_0000), user(0x4000)], 1024).contains("`--mark-mask 0x00000fff`"), "beside Calico");
        assert!(remedy(&[user(0x0f00)], 1024).contains("`--mark-mask 0x0fff0000`"), "beside Cilium");
        let both = remedy(&[user(0xffff_0000), user(0x0f00)], 1024);
        assert!(both.contains("no mask is left: 0x000030ff are free"), "{both}");
        let whole = remedy(&[user(u32::MAX), user(1)], 1024);
        assert!(whole.contains("`--mark-mask 0x0fff0000`") && whole.contains("all 32 bits"), "{whole}");
    }

    #[test]
    fn a_missing_program_is_told_with_its_remedy() {
        let why = save(&["bulkhead-no-such-save"]).unwrap_err();
        assert!(why.contains("bulkhead-no-such-save") && why.contains("install the package `iptables`"), "{why}");
    }
}

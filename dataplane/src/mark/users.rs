//! Who else on a node uses the mark: rules of nftables, iptables and policy routing, in the network namespace of the calling thread.
//!
//! What other eBPF programs, tc filters and sockets (`SO_MARK`) do with it is not to be seen here.

use bulkhead_ebpf::abi::mark;

use super::{iptables, nft, suggest};
use crate::{
    iptables_save, network,
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
    let found = match crate::nft::objects(&["-j", "-n", "list", "ruleset"]) {
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
            match iptables_save::run(&[&format!("{prefix}tables-nft-save"), &format!("{prefix}tables-save")]) {
                Ok((program, text)) => {
                    let saved = iptables::read(&program, &text);
                    shown.retain(|((of, table), _)| of != family || !saved.tables.contains(table));
                    users.extend(saved.users);
                }
                Err(why) => unread.push(why),
            }
        }
        match iptables_save::legacy(prefix) {
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
}

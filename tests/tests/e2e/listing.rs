//! All that can be seen on a node and below its pins, as texts that stay the same as long as nobody changes anything.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use bulkhead_dataplane::sys::{LinkKind, tcx_programs};
use bulkhead_tests::Lab;
use bulkhead_topology::Netns;

/// What a node looks like: by what was asked, what was said.
pub(crate) type Listing = BTreeMap<String, String>;

/// Looks at links, routing rules, routes, queueing disciplines, filters, programs, firewall and BPF file system. Counters and clocks are left out.
pub(crate) fn listing(lab: &Lab, node: usize) -> Listing {
    let netns = &lab.topology.node(node).netns;
    let mut questions: Vec<String> =
        ["ip -d link", "ip rule", "ip -6 rule", "ip route show table all", "tc qdisc show", "nft -a list ruleset"]
            .map(ToOwned::to_owned)
            .into();
    let links = links(netns);
    for side in ["ingress", "egress"] {
        questions.extend(links.iter().map(|(_, link)| format!("tc filter show dev {link} {side}")));
    }
    let mut found: Listing =
        questions.into_iter().map(|question| (question.clone(), steady(&say(netns, &question)))).collect();
    for (index, link) in &links {
        for side in [LinkKind::TcxIngress, LinkKind::TcxEgress] {
            found.insert(format!("{side:?} {link}"), format!("{:?}", tcx(netns, *index, side)));
        }
    }
    let pins = lab.pins(node);
    let base = pins.parent().unwrap();
    let mut files = String::new();
    walk(base, &mut files);
    found.insert("bpffs".to_owned(), files);
    found
}

/// What of a listing is other in another one: the lines that are gone and those that are new. Empty when nothing is.
pub(crate) fn changes(before: &Listing, after: &Listing) -> String {
    let mut text = String::new();
    for key in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
        let (before, after) = (before.get(key), after.get(key));
        if before == after {
            continue;
        }
        text.push_str(&format!("{key}:\n"));
        let [before, after] = [before, after].map(|text| text.map(String::as_str).unwrap_or_default());
        let gone = before.lines().filter(|line| !after.lines().any(|other| other == *line));
        let new = after.lines().filter(|line| !before.lines().any(|other| other == *line));
        gone.for_each(|line| text.push_str(&format!("- {line}\n")));
        new.for_each(|line| text.push_str(&format!("+ {line}\n")));
    }
    text
}

/// Programs of TCX, in the order in which they run.
pub(crate) fn tcx(netns: &Netns, link: u32, side: LinkKind) -> Vec<u32> {
    netns.run(|| tcx_programs(link, side)).unwrap()
}

/// What a command says that must succeed.
#[track_caller]
pub(crate) fn say(netns: &Netns, line: &str) -> String {
    let mut words = line.split(' ');
    let output = netns.command(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn links(netns: &Netns) -> Vec<(u32, String)> {
    let names = netns.run(|| {
        let links = nix::net::if_::if_nameindex().unwrap();
        links.iter().map(|link| (link.index(), link.name().to_str().unwrap().to_owned())).collect::<Vec<_>>()
    });
    assert!(names.len() > 4, "{names:?}");
    names
}

/// A text without the numbers behind what counts: `packets 5 bytes 300`, the timers of a bridge.
fn steady(text: &str) -> String {
    let mut counts = false;
    let mut steady = String::new();
    for part in text.split_inclusive([' ', '\n']) {
        let word = part.trim_end();
        // Numbers are set in columns: there may be more than one space before them.
        if counts && word.is_empty() {
            continue;
        }
        if counts {
            steady.push_str("..");
            steady.push_str(&part[word.len()..]);
        } else {
            steady.push_str(part);
        }
        counts = word.ends_with("_timer") || matches!(word, "packets" | "bytes");
    }
    steady
}

fn walk(directory: &Path, text: &mut String) {
    let mut entries: Vec<_> = fs::read_dir(directory).unwrap().map(Result::unwrap).collect();
    entries.sort_by_key(fs::DirEntry::path);
    for entry in entries {
        let metadata = entry.metadata().unwrap();
        text.push_str(&format!("{:o} {}\n", metadata.permissions().mode(), entry.path().display()));
        if metadata.is_dir() {
            walk(&entry.path(), text);
        }
    }
}

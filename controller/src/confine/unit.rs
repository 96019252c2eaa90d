//! The systemd unit says what the agent does.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use bulkhead_dataplane::rights;
use bulkhead_fixtures::skip;

const UNIT: &str = include_str!("../../deploy/bulkhead.service");

/// Words of a setting.
fn setting(name: &str) -> BTreeSet<&str> {
    let lines: Vec<_> = UNIT.lines().filter_map(|line| line.split_once('=').filter(|(key, _)| *key == name)).collect();
    let [(_, value)] = lines[..] else { panic!("{} lines of {name}", lines.len()) };
    value.split(' ').collect()
}

#[test]
fn the_unit_leaves_exactly_what_the_agent_keeps() {
    assert_eq!(setting("CapabilityBoundingSet"), rights::NEEDED.iter().map(|right| right.name).collect());
    assert_eq!(setting("RestrictAddressFamilies"), BTreeSet::from(["AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK"]));
    assert_eq!(setting("NoNewPrivileges"), BTreeSet::from(["yes"]));
    assert!(!UNIT.lines().any(|line| line.starts_with("ProtectKernelTunables=") || line.starts_with("ProtectProc=")));
}

/// It would be killed or refused what it needs, where nobody looks.
#[test]
fn systemd_takes_the_unit() {
    if !skip::require("systemd-analyze", Command::new("systemd-analyze").arg("--version").output().is_ok()) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let unit = directory.path().join("bulkhead.service");
    // The program itself need not be installed here.
    assert!(UNIT.contains("ExecStart=/usr/local/bin/bulkhead "));
    fs::write(&unit, UNIT.replace("/usr/local/bin/bulkhead", "/bin/true")).unwrap();
    let said = |words: &[&str], unit: &Path| {
        let output = Command::new("systemd-analyze").args(words).arg(unit).output().unwrap();
        (
            output.status.success(),
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
        )
    };
    let (good, text) = said(&["verify", "--man=no"], &unit);
    assert!(good && text.is_empty(), "{text}");
    // It finds settings that it does not know.
    fs::write(&unit, UNIT.replace("/usr/local/bin/bulkhead", "/bin/true").replace("OOMPolicy", "OOMPolitics")).unwrap();
    let (_, text) = said(&["verify", "--man=no"], &unit);
    assert!(text.contains("OOMPolitics"), "{text}");
}

//! The systemd unit says what the agent does.

use std::{collections::BTreeSet, fs, process::Command};

use bulkhead_dataplane::rights;
use bulkhead_fixtures::skip;

const UNIT: &str = include_str!("../../deploy/bulkhead.service");
const FOLLOW: &str = include_str!("../../deploy/bulkhead-follow.service");

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
fn systemd_takes_the_units() {
    if !skip::require("systemd-analyze", Command::new("systemd-analyze").arg("--version").output().is_ok()) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let unit = directory.path().join("bulkhead.service");
    let said = |text: &str| {
        // The program itself need not be installed here.
        assert!(text.contains("ExecStart=/usr/local/bin/bulkhead "));
        fs::write(&unit, text.replace("/usr/local/bin/bulkhead", "/bin/true")).unwrap();
        let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&unit).output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.success(), text)
    };
    for text in [UNIT, FOLLOW] {
        assert_eq!(said(text), (true, String::new()));
    }
    // It finds settings that it does not know.
    let (_, text) = said(&UNIT.replace("OOMPolicy", "OOMPolitics"));
    assert!(text.contains("OOMPolitics"), "{text}");
}

/// Whoever may write where a runtime reads which programs to start may do nothing else.
#[test]
fn who_follows_has_no_rights_but_to_write() {
    for line in
        ["CapabilityBoundingSet=", "ProtectSystem=strict", "PrivateNetwork=yes", "RestrictAddressFamilies=AF_UNIX"]
    {
        assert!(FOLLOW.lines().any(|of| of == line), "{line}");
    }
    assert!(!UNIT.contains("cni"), "the agent's unit lets it write to no directory of networks");
}

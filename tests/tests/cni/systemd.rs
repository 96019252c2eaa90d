//! The units under a real systemd: what a user does after `bulkhead install`.

use std::{fs, path::Path};

use bulkhead_fixtures::skip;
use bulkhead_tests::{
    bulkhead,
    systemd::{SYSTEMD, Systemd},
};

use crate::support::eventually;

const UNITS: [&str; 2] = ["bulkhead", "bulkhead-follow"];
const WORKLOADS: &str =
    "apiVersion: bulkhead/v1\nkind: Workloads\nnodes:\n  - { name: bulkhead-node, addresses: [192.0.2.1] }\n";

fn network(subnet: &str) -> String {
    format!(
        r#"{{"cniVersion":"1.0.0","name":"pods","plugins":[{{"type":"bridge","ipam":{{"type":"host-local","subnet":"{subnet}"}}}}]}}"#
    )
}

/// Sandboxes hold, and leave both programs what they need: started, killed, followed, stopped and taken away.
#[test]
fn installed_units_run_under_systemd() {
    if !skip::programs() || !skip::require("systemd (package systemd)", Path::new(SYSTEMD).exists()) {
        return;
    }
    let program = bulkhead().unwrap();
    let systemd = Systemd::start(program.parent().unwrap()).unwrap();
    let write = |path: &str, text: &str| {
        let path = systemd.file(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let read = |path: &str| fs::read_to_string(systemd.file(path)).unwrap();
    let property = |unit: &str, name: &str| systemd.property(unit, name).unwrap();
    let there = |path: &str| systemd.file(path).exists();

    write("/etc/cni/net.d/10-pods.conflist", &network("10.1.0.0/24"));
    let said = systemd
        .good(&["/mnt/bulkhead", "install", "--runtime", "containerd", "--enforce", "--exempt", "kube-system"])
        .unwrap();
    let next = "systemctl daemon-reload && systemctl enable bulkhead bulkhead-follow && systemctl restart bulkhead bulkhead-follow";
    assert!(said.contains(next), "{said}");
    write("/etc/bulkhead/workloads.yaml", WORKLOADS);
    fs::create_dir(systemd.file("/etc/bulkhead/policies")).unwrap();
    // Of the agent systemd says that it is started when its first revision is in force.
    let started = systemd.good(&["sh", "-c", next]);
    assert!(started.is_ok(), "{started:?}\n{}", systemd.good(&["journalctl", "--no-pager"]).unwrap());
    let status = systemd.good(&["bulkhead", "status"]).unwrap();
    assert!(status.contains("revision  1 of node bulkhead-node"), "{status}");
    assert!(status.contains("exempt    kube-system: containers start whatever becomes of Bulkhead"), "{status}");
    // What starts containers waits for both: each runtime's own unit, and podman's for containers that start with the machine.
    for runtime in ["containerd", "crio", "docker", "k3s", "k3s-agent", "kubelet", "podman", "podman-restart"] {
        let before =
            |unit: &str| property(unit, "Before").split(' ').any(|other| other == format!("{runtime}.service"));
        assert!(UNITS.into_iter().all(before), "{runtime}");
    }
    assert!(property("bulkhead", "ExecStartPost").contains("status=0"), "{}", property("bulkhead", "ExecStartPost"));

    let rights = |unit: &str| {
        let status = read(&format!("/proc/{}/status", property(unit, "MainPID")));
        let value = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
        };
        ["CapEff:", "CapBnd:", "NoNewPrivs:", "Seccomp:"].map(value)
    };
    // CAP_BPF, CAP_PERFMON, CAP_NET_RAW and CAP_NET_ADMIN.
    assert_eq!(rights("bulkhead"), ["000000c000003000", "000000c000003000", "1", "2"]);
    assert_eq!(rights("bulkhead-follow"), ["0000000000000000", "0000000000000000", "1", "2"]);

    // The owner rewrites his file, and its sandbox lets `follow` follow.
    write("/etc/cni/net.d/10-pods.conflist", &network("10.2.0.0/24"));
    eventually("follow", || read("/etc/cni/net.d/00-bulkhead.conflist").contains("10.2.0.0/24"));

    systemd.good(&["systemctl", "kill", "--signal", "KILL", "bulkhead"]).unwrap();
    eventually("the agent is started again", || {
        property("bulkhead", "NRestarts") == "1" && property("bulkhead", "ActiveState") == "active"
    });
    for unit in UNITS {
        assert_eq!(property(unit, "Result"), "success", "{unit}");
    }
    assert_eq!(property("bulkhead-follow", "NRestarts"), "0");

    systemd.good(&["systemctl", "disable", "--now", "bulkhead"]).unwrap();
    // Stopped, it leaves its tables.
    assert!(there("/sys/fs/bpf/bulkhead"));
    systemd.good(&["bulkhead", "uninstall"]).unwrap();
    eventually("follow ends by itself", || property("bulkhead-follow", "ActiveState") == "inactive");
    for path in ["/sys/fs/bpf/bulkhead", "/etc/cni/net.d/00-bulkhead.conflist", "/etc/bulkhead/install.env"] {
        assert!(!there(path), "{path}");
    }
    for unit in UNITS {
        assert!(!Path::new(&systemd.file(&format!("/etc/systemd/system/{unit}.service"))).exists(), "{unit}");
    }
    assert_eq!(read("/etc/cni/net.d/10-pods.conflist"), network("10.2.0.0/24"));
}

//! Each fact has its verdict, and what is not good its remedy.

use bulkhead_controller::check::{Line, Verdict, enforceable, json, judge, text};
use bulkhead_dataplane::{
    check::{Driver, Facts, Place},
    network::{Survey, XdpPlace},
};

use crate::facts::{blind, driver, foreign, good, odd, survey};

/// Lines of a topic, of the good node with a change.
#[track_caller]
fn lines(topic: &str, change: impl FnOnce(&mut Facts)) -> Vec<Line> {
    let mut facts = good();
    change(&mut facts);
    let lines: Vec<Line> = judge(&facts).into_iter().filter(|line| line.topic == topic).collect();
    assert!(!lines.is_empty(), "no topic {topic}");
    lines
}

#[track_caller]
fn line(topic: &str, change: impl FnOnce(&mut Facts)) -> Line {
    let mut lines = lines(topic, change);
    assert_eq!(lines.len(), 1, "{lines:?}");
    lines.remove(0)
}

#[test]
fn a_good_node() {
    let lines = judge(&good());
    assert!(lines.iter().all(|line| line.verdict == Verdict::Ok && line.remedy.is_empty()), "{lines:#?}");
    insta::assert_snapshot!(text(&lines));
}

#[test]
fn warnings_leave_a_node_enforceable() {
    let lines = judge(&odd());
    assert!(enforceable(&lines), "{lines:#?}");
    insta::assert_snapshot!(text(&lines));
}

#[test]
fn what_could_not_be_looked_at_is_never_good() {
    let lines = judge(&blind());
    assert!(!enforceable(&lines));
    let good: Vec<&Line> = lines.iter().filter(|line| line.verdict == Verdict::Ok).collect();
    assert_eq!(good, Vec::<&Line>::new());
    insta::assert_snapshot!(text(&lines));
}

#[test]
fn each_line_that_is_not_good_has_a_remedy() {
    for facts in [odd(), blind()] {
        for line in judge(&facts) {
            assert_eq!(line.verdict == Verdict::Ok, line.remedy.is_empty(), "{line:?}");
        }
    }
}

#[test]
fn programs_read_lines_and_facts() {
    let facts = odd();
    let lines = judge(&facts);
    let json = json(&facts, &lines);
    assert_eq!(json["enforceable"], true);
    assert_eq!(json["lines"].as_array().unwrap().len(), lines.len());
    assert_eq!(json["lines"][0]["verdict"], "ok");
    assert_eq!(json["facts"]["network"]["Ok"]["devices"][0]["vni"], 1);
}

/// Each of these alone keeps the node from being guarded.
#[test]
fn problems() {
    let cases: [(&str, &str, fn(&mut Facts)); 9] = [
        ("rights", "lacks CAP_BPF", |facts| facts.kernel.lacking = Ok(vec!["CAP_BPF"])),
        ("programs", "the verifier says no", |facts| facts.rehearsal = Err("the verifier says no".to_owned())),
        ("bpffs", "no bpffs", |facts| facts.pins = Err("no bpffs".to_owned())),
        ("network", "no netlink", |facts| facts.network = Err("no netlink".to_owned())),
        ("overlay", "checked nowhere", |facts| survey(facts).devices[0].underlays.clear()),
        ("filters", "eth0: it has an `ingress` qdisc", |facts| {
            facts.kernel.tcx = Ok(false);
            facts.hanging[0].ingress_qdisc = Ok(true);
        }),
        ("nftables", "no nft", |facts| facts.firewall.nft = Err("no nft".to_owned())),
        ("policies", "Cilium is here (link cilium_host and 1 more)", |facts| {
            let mut more = survey(facts).links[0].clone();
            for name in ["cilium_net", "cilium_host"] {
                more.name = name.to_owned();
                survey(facts).links.push(more.clone());
            }
        }),
        ("policies", "Calico's eBPF data plane is here (program cali_tc_main)", |facts| {
            facts.hanging[2].foreign = Ok(vec![foreign(Place::TcxIngress, 7, "cali_tc_main")]);
        }),
    ];
    for (topic, expected, change) in cases {
        let line = line(topic, change);
        assert_eq!(line.verdict, Verdict::Problem, "{line:?}");
        assert!(line.found.contains(expected) && !line.remedy.is_empty(), "{line:?}");
        let mut facts = good();
        change(&mut facts);
        assert!(!enforceable(&judge(&facts)));
    }
}

/// A program that could not be asked for may be anybody's.
#[test]
fn absence_is_not_claimed_where_a_probe_could_not_look() {
    for topic in ["filters", "policies"] {
        let line = line(topic, |facts| facts.hanging[1].foreign = Err("no rights".to_owned()));
        assert_eq!(line.verdict, Verdict::Warning, "{line:?}");
    }
    let marks = line("marks", |facts| facts.marks.unread = vec!["no iptables-save".to_owned()]);
    assert_eq!(marks.verdict, Verdict::Warning);
}

/// With TCX no clsact is needed.
#[test]
fn an_ingress_qdisc_is_in_the_way_of_clsact_alone() {
    assert_eq!(line("filters", |facts| facts.hanging[0].ingress_qdisc = Ok(true)).verdict, Verdict::Ok);
    let unsure = line("filters", |facts| {
        facts.hanging[0].ingress_qdisc = Ok(true);
        facts.kernel.tcx = Err("no rights".to_owned());
    });
    assert_eq!(unsure.verdict, Verdict::Problem);
}

#[test]
fn kernels_are_compared_by_their_numbers() {
    for (release, verdict) in [
        ("6.1.0-18-amd64", Verdict::Ok),
        ("6.18.44", Verdict::Ok),
        ("10.0.0", Verdict::Ok),
        ("6.0.12", Verdict::Warning),
        ("5.15.0-91-generic", Verdict::Warning),
        ("six", Verdict::Warning),
        ("", Verdict::Warning),
    ] {
        assert_eq!(line("kernel", |facts| facts.kernel.release = Ok(release.to_owned())).verdict, verdict, "{release}");
    }
}

#[test]
fn a_link_tells_what_native_xdp_would_do() {
    let says = |driver: Driver, mtu| {
        line("underlay", |facts| {
            facts.drivers[0].1 = driver;
            survey(facts).links[0].mtu = mtu;
        })
    };
    let both = Driver::XDP_BASIC | Driver::XDP_FRAGMENTS;
    for (driver, mtu, expected) in [
        (driver("dummy", 0), 1500, "would be refused, the driver has no XDP"),
        (driver("e1000", Driver::XDP_BASIC), 9000, "may be refused: a packet of 9000 bytes does not fit one buffer"),
        (driver("e1000", Driver::XDP_BASIC), 3507, "may be refused"),
        (driver("e1000", Driver::XDP_BASIC), 3506, "may reset the link"),
        (driver("ice", both), 9000, "may reset the link"),
        (driver("veth", both), 1500, "costs the peer TSO"),
        (driver("virtio_net", both), 1500, "stops the link for a moment"),
    ] {
        let line = says(driver, mtu);
        assert!(line.verdict == Verdict::Ok && line.found.contains(expected), "{expected}: {line:?}");
    }
    let unknown = says(Driver { name: Err("no name".to_owned()), xdp: Err("before 6.3".to_owned()) }, 1500);
    assert_eq!(unknown.verdict, Verdict::Warning);
    assert!(unknown.found.contains("no name") && unknown.found.contains("before 6.3"), "{unknown:?}");
    let foreign = line("underlay", |facts| {
        facts.hanging[0].foreign = Ok(vec![foreign(Place::Xdp(XdpPlace::Generic), 9, "ids")]);
    });
    assert_eq!(foreign.verdict, Verdict::Warning);
    assert!(foreign.found.contains("XDP generic program 9 (ids) of somebody else"), "{foreign:?}");
}

#[test]
fn the_mode_of_kube_proxy_is_told_by_its_rules() {
    let of = |tables: &[&str], chains: &[&str], ipvs| {
        line("kube-proxy", |facts| {
            facts.firewall.tables = tables.iter().map(|table| ("ip".to_owned(), (*table).to_owned())).collect();
            facts.firewall.chains = chains.iter().map(|chain| (*chain).to_owned()).collect();
            facts.firewall.ipvs = Ok(ipvs);
        })
    };
    for (tables, chains, ipvs, verdict, found) in [
        (&[][..], &["KUBE-MARK-MASQ", "KUBELET"][..], 0, Verdict::Ok, "none"),
        (&["kube-proxy"], &[], 0, Verdict::Ok, "nftables (table kube-proxy)"),
        (&["nat"], &["KUBE-SERVICES", "KUBE-SVC-X"], 0, Verdict::Ok, "iptables (chains KUBE-SVC-*: 1)"),
        (&[], &[], 3, Verdict::Warning, "IPVS (3 services)"),
        (&["kube-proxy"], &["KUBE-SVC-X"], 0, Verdict::Warning, "one of them is left over"),
    ] {
        let line = of(tables, chains, ipvs);
        assert!(line.verdict == verdict && line.found.contains(found), "{line:?}");
    }
}

#[test]
fn a_kube_router_without_policies_is_none_that_enforces() {
    let with = |chain: &str| {
        line("policies", |facts| {
            facts.firewall.chains.insert(chain.to_owned());
        })
    };
    assert_eq!(with("KUBE-ROUTER-SERVICES").verdict, Verdict::Ok);
    assert!(with("KUBE-ROUTER-INPUT").found.starts_with("kube-router is here"));
}

#[test]
fn a_network_that_is_not_up_yet_is_said() {
    let line = line("overlay", |facts| facts.network = Ok(Survey::default()));
    assert_eq!(line.verdict, Verdict::Warning);
    assert!(line.remedy.contains("nsenter"), "{line:?}");
}

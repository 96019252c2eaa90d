//! Made-up nodes.

use std::path::PathBuf;

use bulkhead_dataplane::{
    check::{Driver, Facts, Firewall, Foreign, Hanging, Kernel, Place, Process, Rootless},
    load::Rehearsal,
    network::{PlainRoute, Reach, Survey, SurveyedLink, VxlanDevice, XdpPlace},
    node::{MarkConflicts, MarkUser},
};

/// A node of flannel with two others, on which nothing is wrong.
pub(crate) fn good() -> Facts {
    let link = |name: &str, index| SurveyedLink { name: name.to_owned(), index, mtu: 1500, ..SurveyedLink::default() };
    let survey = Survey {
        devices: vec![VxlanDevice {
            device: "flannel.1".to_owned(),
            vni: Some(1),
            port: 8472,
            own: Some([192, 0, 2, 1].into()),
            learning: false,
            elsewhere: false,
            underlays: vec!["eth0".to_owned()],
            permanent: 2,
            learned: vec![],
            peers: 2,
            owned: 2,
        }],
        links: vec![
            SurveyedLink { underlay: true, ..link("eth0", 2) },
            link("flannel.1", 3),
            link("cni0", 4),
            SurveyedLink { port: true, ..link("veth1", 5) },
        ],
        plain: vec![],
    };
    let clean = |link: &str| Hanging { link: link.to_owned(), ingress_qdisc: Ok(false), foreign: Ok(vec![]) };
    Facts {
        directory: PathBuf::from("/sys/fs/bpf/bulkhead"),
        mark_mask: 0x3f00_0fff,
        installed: false,
        kernel: Kernel { release: Ok("6.12.9-amd64".to_owned()), btf: true, tcx: Ok(true), lacking: Ok(vec![]) },
        rehearsal: Ok(Rehearsal { programs: 14, compiled: 14 }),
        pins: Ok(()),
        network: Ok(survey),
        drivers: vec![("eth0".to_owned(), driver("ice", Driver::XDP_BASIC | Driver::XDP_FRAGMENTS))],
        hanging: ["eth0", "flannel.1", "veth1"].map(clean).to_vec(),
        firewall: Firewall {
            tables: [("ip".to_owned(), "kube-proxy".to_owned())].into(),
            chains: ["services".to_owned()].into(),
            ..Firewall::empty()
        },
        marks: MarkConflicts::default(),
        rootless: Ok(Rootless::default()),
    }
}

pub(crate) fn driver(name: &str, xdp: u64) -> Driver {
    Driver { name: Ok(name.to_owned()), xdp: Ok(xdp) }
}

pub(crate) fn foreign(place: Place, id: u32, name: &str) -> Foreign {
    Foreign { place, id: Some(id), name: name.to_owned(), priority: None }
}

pub(crate) fn survey(facts: &mut Facts) -> &mut Survey {
    facts.network.as_mut().unwrap()
}

/// A node that can be guarded, with something to say on each topic.
pub(crate) fn odd() -> Facts {
    let mut facts = good();
    facts.installed = true;
    facts.kernel =
        Kernel { release: Ok("5.15.0-91-generic".to_owned()), btf: false, tcx: Ok(false), lacking: Ok(vec![]) };
    facts.rehearsal = Ok(Rehearsal { programs: 14, compiled: 0 });
    facts.hanging[0].foreign = Ok(vec![foreign(Place::Xdp(XdpPlace::Native), 12, "xdp_dispatcher")]);
    facts.hanging[2].foreign = Ok(vec![
        foreign(Place::TcxIngress, 40, ""),
        Foreign { place: Place::ClsactEgress, id: None, name: String::new(), priority: Some(49_152) },
    ]);
    let network = survey(&mut facts);
    let flannel = network.devices[0].clone();
    network.devices.extend([
        VxlanDevice { device: "ovs".to_owned(), vni: None, ..flannel.clone() },
        VxlanDevice { device: "vx-docker".to_owned(), elsewhere: true, underlays: vec![], ..flannel.clone() },
        VxlanDevice {
            device: "vx-lab".to_owned(),
            learning: true,
            learned: vec![[192, 0, 2, 9].into()],
            ..flannel.clone()
        },
        VxlanDevice { device: "vx-new".to_owned(), learning: true, permanent: 0, peers: 0, owned: 0, ..flannel },
    ]);
    let route = |prefix: &str, gateway: Option<&str>, reach| PlainRoute {
        prefix: prefix.parse().unwrap(),
        gateway: gateway.map(|gateway| gateway.parse().unwrap()),
        links: vec!["eth0".to_owned()],
        reach,
    };
    network.plain = vec![
        route("10.42.1.0/24", Some("192.0.2.2"), Reach::Node),
        route("10.42.2.9/32", Some("192.0.2.3"), Reach::Overlay),
        route("198.51.100.0/24", Some("192.0.2.254"), Reach::Gateway),
        route("203.0.113.0/24", None, Reach::Gateway),
    ];
    facts.firewall.chains.extend(
        ["KUBE-SVC-A", "KUBE-SVC-B", "KUBE-ROUTER-FORWARD", "KUBE-POD-FW-X", "cali-FORWARD"].map(str::to_owned),
    );
    for table in ["kube-network-policies", "ids"] {
        facts.firewall.tables.insert(("inet".to_owned(), table.to_owned()));
        facts.firewall.queues.insert(("inet".to_owned(), table.to_owned()));
    }
    let user = |rule: &str, reads, writes| MarkUser { rule: rule.to_owned(), reads, writes };
    facts.marks = MarkConflicts {
        users: vec![
            user("ip rule 50: from all fwmark 0x100/0x300 lookup 100", 0x300, 0),
            user("a rule of a VPN", 0, u32::MAX),
        ],
        unread: vec![],
        remedy: "`--mark-mask 0x0fff0000` keeps out of the way of whoever uses some bits".to_owned(),
    };
    let process = |pid, program: &str| Process { pid, uid: 1000, program: program.to_owned() };
    facts.rootless = Ok(Rootless {
        carriers: vec![process(700, "slirp4netns"), process(800, "rootlessport")],
        namespaces: vec![process(701, "conmon")],
        unseen: 1,
    });
    facts
}

/// What is seen by somebody who may see nothing.
pub(crate) fn blind() -> Facts {
    let not = |what: &str| format!("{what}: Operation not permitted (os error 1)");
    let mut facts = good();
    facts.kernel = Kernel {
        release: Err(not("read /proc/sys/kernel/osrelease")),
        btf: false,
        tcx: Err(not("ask for the TCX programs of lo")),
        lacking: Ok(vec!["CAP_NET_ADMIN", "CAP_BPF"]),
    };
    facts.rehearsal = Err(not("make the tables"));
    facts.pins = Err("pin in /sys/fs/bpf/bulkhead: /sys/fs/bpf is not on a BPF file system".to_owned());
    facts.network = Err(not("look at the network"));
    facts.drivers = vec![];
    facts.hanging = vec![];
    facts.firewall = Firewall {
        nft: Err(not("run `nft -j -n list ruleset`")),
        ipvs: Err(not("read /proc/thread-self/net/ip_vs")),
        unread: vec![not("read /proc/thread-self/net/ip_tables_names")],
        ..Firewall::empty()
    };
    facts.marks.unread = vec![not("list the rules of policy routing")];
    facts.rootless = Err(not("look at the processes in /proc"));
    facts
}

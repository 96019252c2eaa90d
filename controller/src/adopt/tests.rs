use std::{fs, os::unix::fs::symlink, sync::Arc};

use bulkhead_dataplane::cni::config;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{
    attachments::Attachments,
    diagnostic::source,
    workloads::{self, WorkloadName},
};

const FILE: &str = "apiVersion: bulkhead/v1
kind: Workloads
nodes:
  - { name: n1, addresses: [192.0.2.1], segments: [{ vni: 1, vtep: 192.0.2.1, prefixes: [10.244.1.0/24] }] }
  - { name: n2, addresses: [192.0.2.2] }
workloads:
  - { name: web, namespace: shop, node: n1 }
  - { name: same, namespace: a, node: n1 }
  - { name: same, namespace: b, node: n1 }
  - { name: listed, namespace: shop, node: n1, endpoints: [{ segment: 1, addresses: [10.244.1.9, 'fd00::9'] }] }
  - { name: linked, namespace: shop, node: n1, endpoints: [{ segment: 1, addresses: [10.244.1.8], link: veth8 }] }
  - { name: plain, namespace: shop, node: n1, endpoints: [{ addresses: [172.17.0.5] }] }
  - { name: away, namespace: shop, node: n2, endpoints: [{ addresses: [172.17.0.6] }] }
";

fn file() -> Workloads {
    workloads::parse(&source("workloads.yaml", FILE.to_owned())).unwrap_or_else(|found| panic!("{found}"))
}

fn link(name: &str, index: u32, bridge: Option<&str>, addresses: &[&str]) -> ContainerLink {
    let mut addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
    addresses.sort_unstable();
    ContainerLink {
        link: name.to_owned(),
        index,
        netns: index.cast_signed(),
        bridge: bridge.map(str::to_owned),
        inside: "eth0".to_owned(),
        addresses,
        ..ContainerLink::default()
    }
}

fn containers(links: &[ContainerLink]) -> Containers {
    let bridges = links.iter().filter_map(|link| link.bridge.clone());
    Containers { names: links.iter().map(|link| link.link.clone()).chain(bridges).collect(), links: links.to_vec() }
}

fn cached(container: &str, outside: &[&str], addresses: &[&str]) -> Cached {
    Cached {
        network: "shop".to_owned(),
        key: Key { container: container.to_owned(), ifname: "eth0".to_owned() },
        namespace: Some("shop".to_owned()),
        name: Some(container.to_owned()),
        uid: None,
        labels: BTreeMap::new(),
        outside: outside.iter().map(|&name| name.to_owned()).collect(),
        inside: vec![config::Interface {
            name: "eth0".to_owned(),
            sandbox: "/run/netns/x".to_owned(),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        }],
    }
}

fn told(request: &Request) -> &Attached {
    match &request.ask {
        Ask::Add(attached) => attached,
        other => panic!("{other:?}"),
    }
}

fn who(link: &ContainerLink, all: &Containers, entries: &[Cached]) -> Result<String, String> {
    identify(link, all, entries, (&file(), "n1")).map(|request| told(&request).key.container.clone())
}

#[test]
fn links_of_the_nodes_networks_are_told_from_others() {
    let all = containers(&[
        link("veth1", 1, None, &["10.244.1.7"]),
        link("veth2", 2, Some("cni0"), &["203.0.113.9"]),
        link("veth3", 3, Some("docker0"), &[]),
        link("veth4", 4, Some("lxcbr0"), &["203.0.113.10"]),
        link("veth5", 5, None, &["172.17.0.5"]),
        link("veth6", 6, None, &["172.17.0.6"]),
        link("veth8", 8, Some("cni0"), &["10.244.1.8"]),
    ]);
    let found = |guarded: &[&str], bridges: &[&str]| -> Vec<String> {
        let bridges = bridges.iter().map(|&bridge| bridge.to_owned()).collect();
        let found = unguarded(&all, &guarded.iter().copied().collect(), (&file(), "n1"), &bridges);
        found.into_iter().map(|link| link.link.clone()).collect()
    };
    assert_eq!(found(&["veth8"], &[]), ["veth1", "veth2", "veth5"], "by prefix, by bridge, by an address of the file");
    assert_eq!(found(&["veth8"], &["docker0"]), ["veth1", "veth2", "veth3", "veth5"]);
    assert_eq!(found(&[], &[]), ["veth1", "veth5", "veth8"], "without a guarded port a bridge says nothing");
    assert_eq!(found(&["veth1", "veth2", "veth5", "veth8"], &[]), [""; 0]);
}

#[test]
fn a_result_is_found_by_its_link_and_else_by_its_addresses() {
    let here = link("veth1", 1, Some("cni0"), &["10.244.1.7", "fd00::7"]);
    let all = containers(&[here.clone(), link("veth2", 2, Some("cni0"), &["10.244.1.6"])]);
    let named = cached("named", &["cni0", "veth1"], &["10.244.1.7"]);
    let addressed = cached("addressed", &["cni0"], &["10.244.1.7", "fd00::7"]);
    let second = cached("second", &[], &["10.244.1.7"]);
    let both = [addressed.clone(), named.clone(), second.clone()];
    assert_eq!(who(&here, &all, &both), Ok("named".to_owned()));
    assert_eq!(who(&here, &all, &both[..1]), Ok("addressed".to_owned()));
    assert!(who(&here, &all, &[addressed, second]).unwrap_err().contains("addressed, second"));
    // A container that is gone had the address before.
    let gone = cached("gone", &["cni0", "veth0"], &["10.244.1.7"]);
    assert!(who(&here, &all, &[gone]).unwrap_err().contains("no workload of the file"));
    // Another container has it, and this one has given it to itself.
    let stolen = cached("another", &["cni0", "veth2"], &["10.244.1.7"]);
    assert!(who(&here, &all, &[stolen]).unwrap_err().contains("no workload of the file"));
    // A name alone does not do where the addresses say otherwise.
    assert!(who(&here, &all, &[cached("other", &["cni0", "veth1"], &["10.244.1.5"])]).is_err());
    // Where none can be read it must.
    let unread = ContainerLink { inside: String::new(), addresses: Vec::new(), unread: "no".to_owned(), ..here };
    assert_eq!(who(&unread, &all, &[named]), Ok("named".to_owned()));
    assert!(
        who(&unread, &all, &[cached("addressed", &["cni0"], &["10.244.1.7"])]).unwrap_err().contains("cannot be read")
    );
}

#[test]
fn what_is_made_of_a_result_is_what_add_would_have_told() {
    let here = link("veth1", 1, Some("cni0"), &["10.244.1.7"]);
    let all = containers(std::slice::from_ref(&here));
    let request = identify(&here, &all, &[cached("web", &["veth1"], &["10.244.1.7"])], (&file(), "n1")).unwrap();
    assert_eq!((request.network.as_str(), request.version), ("shop", VERSION));
    let attached = told(&request);
    let addresses = vec!["10.244.1.7".parse().unwrap()];
    let interface = Interface { name: "eth0".to_owned(), link: "veth1".to_owned(), ifindex: 1, addresses };
    assert_eq!(attached.interfaces, [interface]);
    assert_eq!((attached.namespace.as_str(), attached.name.as_str()), ("shop", "web"));
    // Who has no namespace has that of the only workload of the name here.
    for (name, namespace) in
        [(Some("web"), "shop"), (Some("same"), "default"), (Some("away"), "default"), (None, "default")]
    {
        let name = name.map(str::to_owned);
        let entry = Cached { namespace: None, name: name.clone(), ..cached("c0ffee", &["veth1"], &["10.244.1.7"]) };
        let request = identify(&here, &all, &[entry], (&file(), "n1")).unwrap();
        let attached = told(&request);
        assert_eq!(attached.namespace, namespace, "{name:?}");
        assert_eq!(attached.name, name.unwrap_or("c0ffee".to_owned()));
    }
}

#[test]
fn a_workload_without_a_link_is_found_by_exactly_its_addresses() {
    let exact = link("veth1", 1, None, &["fd00::9", "10.244.1.9"]);
    let all = containers(std::slice::from_ref(&exact));
    let request = identify(&exact, &all, &[], (&file(), "n1")).unwrap();
    assert_eq!(request.network, LISTED);
    assert_eq!((told(&request).namespace.as_str(), told(&request).name.as_str()), ("shop", "listed"));
    for others in
        [&["10.244.1.9"][..], &["10.244.1.9", "fd00::9", "10.244.1.10"], &["10.244.1.8"], &["172.17.0.6"], &[]]
    {
        assert!(who(&link("veth1", 1, None, others), &all, &[]).is_err(), "{others:?}");
    }
    // Of a pod it is that one, and not the next one of its name.
    let mut cluster = file();
    let pod = cluster.workloads.get_mut(&WorkloadName::new("shop", "listed")).unwrap();
    Arc::make_mut(pod).uid = Some("first".into());
    let of_pod = identify(&exact, &all, &[], (&cluster, "n1")).unwrap();
    assert_eq!(told(&of_pod).uid.as_deref(), Some("first"));
    // Once it has a link it is nobody else; the word of a runtime takes the place of what stands for it.
    let mut attachments = Attachments::default();
    let add = |attachments: &mut Attachments, request: &Request| {
        let attached = told(request).clone();
        attachments.add(crate::attachments::Attachment { network: request.network.clone(), attached });
    };
    add(&mut attachments, &request);
    let joined = attachments.join(&file(), "n1").unwrap();
    assert!(identify(&link("veth2", 2, None, &["fd00::9", "10.244.1.9"]), &all, &[], (&joined, "n1")).is_err());
    let cached = Cached { name: Some("listed".to_owned()), ..cached("c", &["veth1"], &["10.244.1.9", "fd00::9"]) };
    let real = identify(&exact, &all, &[cached], (&file(), "n1")).unwrap();
    add(&mut attachments, &real);
    let keys: Vec<_> = attachments.iter().map(|known| known.attached.key.container.as_str()).collect();
    assert_eq!(keys, ["c"]);
}

/// As libcni 1.1 writes it, with a configuration that has our entry.
fn written() -> Value {
    // {"cniVersion":"1.0.0","name":"shop","plugins":[{"type":"bridge"},{"type":"bulkhead-cni","namespace":"tenant","args":{"cni":{"labels":[{"key":"app","value":"web"}]}}}]}
    let config = "eyJjbmlWZXJzaW9uIjoiMS4wLjAiLCJuYW1lIjoic2hvcCIsInBsdWdpbnMiOlt7InR5cGUiOiJicmlkZ2UifSx7InR5cGUiOiJidWxraGVhZC1jbmkiLCJuYW1lc3BhY2UiOiJ0ZW5hbnQiLCJhcmdzIjp7ImNuaSI6eyJsYWJlbHMiOlt7ImtleSI6ImFwcCIsInZhbHVlIjoid2ViIn1dfX19XX0=";
    json!({
        "kind": "cniCacheV1", "containerId": "c0ffee", "config": config, "ifName": "eth0", "networkName": "shop",
        "netns": "/var/run/netns/cni-1", "cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAME", "web-1"]],
        "capabilityArgs": { "labels": { "tier": "front" } },
        "result": {
            "cniVersion": "1.0.0",
            "interfaces": [
                { "name": "cni0", "mac": "02:00:00:00:00:01" }, { "name": "veth1", "mac": "02:00:00:00:00:02" },
                { "name": "eth0", "mac": "02:00:00:00:00:03", "sandbox": "/var/run/netns/cni-1" }
            ],
            "ips": [{ "interface": 2, "address": "10.244.1.7/24", "gateway": "10.244.1.1" }],
            "dns": {}
        }
    })
}

fn parse(value: &Value) -> Result<Cached, String> {
    Cached::parse(value.to_string().as_bytes())
}

#[test]
fn a_result_is_read_as_libcni_writes_it() {
    let cached = parse(&written()).unwrap();
    assert_eq!(
        (cached.network.as_str(), cached.key.container.as_str(), cached.key.ifname.as_str()),
        ("shop", "c0ffee", "eth0")
    );
    assert_eq!((cached.name.as_deref(), cached.namespace.as_deref()), (Some("web-1"), Some("tenant")));
    let labels = [("app", "web"), ("tier", "front")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(cached.labels, BTreeMap::from(labels));
    assert_eq!(cached.outside, ["cni0", "veth1"].map(str::to_owned).into());
    assert_eq!(cached.inside.len(), 1);
    assert_eq!(cached.inside[0].addresses, ["10.244.1.7".parse::<IpAddr>().unwrap()]);

    let with = |key: &str, value: Value| {
        let mut changed = written();
        changed[key] = value;
        changed
    };
    // The runtime's word comes before the network's; without our entry there is none.
    let named = with("cniArgs", json!([["K8S_POD_NAMESPACE", "own"]]));
    assert_eq!(parse(&named).unwrap().namespace.as_deref(), Some("own"));
    let bare = parse(&with("config", json!("e30="))).unwrap();
    assert_eq!((bare.namespace, bare.labels), (None, BTreeMap::new()));
    for (key, value, why) in [
        ("kind", json!("cniCacheV2"), "kind"),
        ("containerId", json!("../../etc"), "cannot be that of a container"),
        ("ifName", json!("a/b"), "cannot be that of a link"),
        ("cniArgs", json!([["K8S_POD_NAME", "a b"]]), "cannot be a name"),
        ("config", json!("?"), "its configuration"),
        ("result", json!({}), "no interface"),
        (
            "result",
            json!({ "interfaces": [{ "name": "eth0", "sandbox": "x" }], "ips": [{ "address": "ten" }] }),
            "no address",
        ),
    ] {
        let found = parse(&with(key, value)).unwrap_err();
        assert!(found.contains(why), "{key}: {found}");
    }
}

#[test]
fn what_is_no_result_is_left_out_and_said_once() {
    let directory = tempfile::tempdir().unwrap();
    let mut told = BTreeSet::new();
    assert_eq!(cache::read(directory.path(), &mut told), [], "no runtime was here");
    let results = directory.path().join("results");
    fs::create_dir(&results).unwrap();
    let good = written().to_string();
    fs::write(results.join("shop-c0ffee-eth0"), &good).unwrap();
    fs::write(results.join("shop-other-eth0"), &good).unwrap();
    fs::write(results.join("empty"), "").unwrap();
    fs::write(results.join("large"), vec![b' '; (1 << 20) + 1]).unwrap();
    fs::create_dir(results.join("directory")).unwrap();
    symlink("shop-c0ffee-eth0", results.join("link")).unwrap();
    nix::unistd::mkfifo(&results.join("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    for _ in 0..2 {
        let found = cache::read(directory.path(), &mut told);
        assert_eq!(found.iter().map(|cached| cached.key.container.as_str()).collect::<Vec<_>>(), ["c0ffee"]);
        let names = ["directory", "empty", "large", "link", "pipe", "shop-other-eth0"];
        assert_eq!(told, names.map(|name| results.join(name)).into());
    }
}

/// A JSON value like those of a result, but any of them.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[ -~]{0,12}".prop_map(Value::from),
        Just(Value::from("10.244.1.7/24")),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("name|sandbox|interface|interfaces|ips|address|[a-z]{1,4}", inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    /// Foreign bytes never end the agent, and whatever is taken from them could have been told by an ADD.
    #[test]
    fn whatever_is_read_is_what_an_add_may_say(
        key in prop::sample::select(vec!["kind", "containerId", "ifName", "networkName", "cniArgs", "capabilityArgs", "config", "result"]),
        value in any_json(),
        cut in 0_usize..1200,
        flip in any::<(usize, u8)>(),
    ) {
        let mut changed = written();
        changed[key] = value;
        let mut bytes = changed.to_string().into_bytes();
        let check = |bytes: &[u8]| {
            if let Ok(cached) = Cached::parse(bytes) {
                prop_assert!(config::name(&cached.key.container));
                prop_assert!(cached.key.ifname.len() <= 15 && !cached.key.ifname.contains('/'));
                prop_assert!(cached.namespace.iter().chain(&cached.name).chain(&cached.uid).all(|name| config::name(name)));
                prop_assert!(!cached.inside.is_empty() && cached.inside.iter().all(|inside| !inside.addresses.is_empty()));
            }
            Ok(())
        };
        check(&bytes)?;
        let at = flip.0 % bytes.len();
        bytes[at] ^= flip.1;
        check(&bytes)?;
        bytes.truncate(cut);
        check(&bytes)?;
    }
}

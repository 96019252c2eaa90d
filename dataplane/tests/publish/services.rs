//! Service addresses: they follow what is known of their backends, at every moment and after every crash.

use std::{collections::BTreeSet, ops::ControlFlow};

use bulkhead_dataplane::{
    desired::{Backend, Desired, ServiceAddress},
    node::NodeError,
    publish::CrashPoint,
    store::{Addresses4, BackendTable, Rows, Services, Store, Table},
};
use bulkhead_ebpf::abi::{self, AddressKey4, AddressWord, ROW_WORDS, ServiceKey, ServiceWord, mapped};

use crate::{
    build::Build,
    history::{History, Moment, apply},
    judge::Look as _,
    probes::{PROVISIONAL, calls, host, slots},
    rig::Rig,
    world::name,
};

/// Endpoint 0 may call `web`; the service's two backends have these labels, one of them on this node.
fn shop(local: &[&str], remote: &[&str]) -> Desired {
    let mut desired = Build::default()
        .endpoint(0, &[], &[], &["web"])
        .endpoint(1, local, &["web"], &[])
        .address("10.0.9.9", remote)
        .prefix("0.0.0.0/0", &["world"])
        .0;
    let service = ServiceAddress { segment: 1, address: Some("10.96.3.4".parse().unwrap()), protocol: 6, port: 80 };
    let backend = |address: &str| Backend { address: address.parse().unwrap(), port: 8080, judged_later: true };
    let backends: BTreeSet<_> = ["10.0.0.2", "10.0.9.9"].map(backend).into();
    desired.services.insert(service, backends.clone());
    desired.services.insert(ServiceAddress { address: None, port: 30_080, ..service }, backends);
    desired
}

const CLUSTER_IP: u32 = u32::from_ne_bytes([10, 96, 3, 4]);

fn key() -> ServiceKey {
    ServiceKey { segment: 1, address: mapped(CLUSTER_IP), port: 80, protocol: 6, padding: 0 }
}

/// What a table says: zeroed where nothing was written, as an array does.
fn backends(store: &impl Store, key: &ServiceKey) -> Option<abi::Backends> {
    let word = ServiceWord(store.get::<Services>(key).unwrap()?);
    assert_eq!(word.tag(), key.tag());
    Some(store.get::<BackendTable>(&word.backends()).unwrap().unwrap())
}

fn row_of(store: &impl Store, address: [u8; 4]) -> u32 {
    let key = AddressKey4 { segment: 1, address: u32::from_ne_bytes(address) };
    AddressWord(store.get::<Addresses4>(&key).unwrap().unwrap()).row()
}

/// The service leads to its backends by the rows that these have.
fn assert_follows(rig: &Rig) {
    let found = backends(&rig.store, &key()).expect("a service address");
    let rows: BTreeSet<u32> = found.backends[..found.len as usize].iter().map(|backend| backend.row.into()).collect();
    assert_eq!(rows, [[10, 0, 0, 2], [10, 0, 9, 9]].map(|address| row_of(&rig.store, address)).into());
    let local = found.backends.iter().filter(|backend| backend.flags & abi::Backend::LOCAL != 0).count();
    assert_eq!(local, 1, "{found:?}");
    let word = rig.store.get::<Addresses4>(&AddressKey4 { segment: 1, address: CLUSTER_IP }).unwrap().unwrap();
    assert_eq!(AddressWord(word).flags(), AddressWord::SERVICE);
}

#[test]
fn service_addresses_follow_their_backends() {
    let states =
        [shop(&["web"], &["web"]), shop(&["ops"], &["web"]), shop(&["web", "ops"], &["ops"]), shop(&[], &["web"])];
    let mut rig = Rig::new();
    rig.publish(&states[0]).unwrap();
    assert_follows(&rig);
    for state in &states[1..] {
        let start = rig.store.snapshot();
        rig.store.memory().journal = Some(Vec::new());
        rig.publish(state).unwrap();
        let history = History::new(&start, rig.store.memory().journal.take().unwrap());
        assert_follows(&rig);
        // Whoever follows the word at any moment finds backends and rows that are whole.
        for moment in 0..=*history.ends.last().unwrap() {
            let mut tables = Moment(&history, moment);
            let bytes = |value: Option<Vec<u8>>| value.unwrap_or_default();
            let key = key();
            // SAFETY: a type of the ABI: no padding.
            let raw = unsafe { std::slice::from_raw_parts((&raw const key).cast::<u8>(), size_of::<ServiceKey>()) };
            let word = bytes(tables.bytes(Services::NAME, raw));
            let word = ServiceWord(u64::from_ne_bytes(word.try_into().expect("never without the service")));
            let found = bytes(tables.bytes(BackendTable::NAME, &word.backends().to_ne_bytes()));
            assert!(found.iter().any(|byte| *byte != 0), "moment {moment}: backends that are not written");
            for pair in found.as_chunks::<8>().0.iter().take(2).filter(|pair| **pair != [0; 8]) {
                let row = u32::from(u16::from_ne_bytes([pair[0], pair[1]]));
                let first = bytes(tables.bytes(Rows::NAME, &(row * ROW_WORDS).to_ne_bytes()));
                assert!(row == 0 || first.iter().any(|byte| *byte != 0), "moment {moment}: row {row} is not written");
            }
        }
    }
}

/// A pod that is relabelled with the others of its service is a backend of what it calls at every moment.
#[test]
fn who_is_a_backend_reaches_its_service_while_it_is_relabelled() {
    let mut rig = Rig::new();
    rig.publish(&shop(&["web"], &["web"])).unwrap();
    for labels in [&["web", "ops"][..], &["ops"], &["web"]] {
        let desired = shop(labels, &["web"]);
        let mut tables = rig.store.snapshot();
        rig.store.memory().journal = Some(Vec::new());
        rig.publish(&desired).unwrap();
        let journal = rig.store.memory().journal.take().unwrap();
        let slot = rig.slots[&name(1)];
        let endpoint: Vec<_> = slots(&tables).filter(|(found, _)| *found == slot).collect();
        let [call, _] = &calls(&endpoint)[..] else { panic!("calls by IPv4") };
        for event in journal {
            apply(&event, &mut tables);
            let verdict = call.judged(&host(&tables)).all(true, false);
            assert_eq!(verdict, Some(PROVISIONAL), "{labels:?}, after {event:?}");
        }
        assert_follows(&rig);
    }
}

#[test]
fn a_crash_leaves_nothing_of_service_addresses_behind() {
    let (old, new) = (shop(&["web"], &["web"]), shop(&["ops"], &["web", "ops"]));
    let none = Desired { services: [].into(), ..new.clone() };
    for point in CrashPoint::ALL {
        let mut rig = Rig::new();
        rig.publish(&old).unwrap();
        rig.publisher.set_hook(Some(Box::new(move |reached| {
            if reached == point { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })));
        assert!(matches!(rig.publish(&new), Err(NodeError::Kernel { .. })), "{point:?}");
        let mut rig = rig.fork();
        rig.publish(&new).unwrap();
        assert_follows(&rig);
        rig.publish(&none).unwrap();
        let usage = rig.usage();
        assert_eq!((usage[Services::NAME], usage[BackendTable::NAME]), (0, 0), "{point:?}");
    }
}

/// The rest of the document is not to wait for one service.
#[test]
fn of_too_many_kinds_of_backends_those_come_first_that_nothing_judges_later() {
    let mut desired = shop(&["web"], &["web"]);
    let (service, _) = desired.services.pop_last().unwrap();
    let backends = |later: u16| {
        (1..=9).map(move |port| Backend { address: "10.0.9.9".parse().unwrap(), port, judged_later: port <= later })
    };
    let mut rig = Rig::new();
    for later in [9, 7] {
        desired.services.insert(service, backends(later).collect());
        rig.publish(&desired).unwrap();
        let content = self::backends(&rig.store, &key()).unwrap();
        assert_eq!(content.len, 9);
        let now = content.backends.iter().take_while(|backend| backend.flags & abi::Backend::LATER == 0).count();
        assert_eq!(now, 9 - usize::from(later));
    }
}

/// Whoever may write services may give them any address.
#[test]
fn who_has_an_address_keeps_it_from_a_service() {
    let desired = shop(&["web"], &["web"]);
    let taken = *desired.addresses.iter().next().unwrap().0;
    let mut claims = desired.clone();
    let (mut service, backends) = claims.services.pop_last().unwrap();
    (service.segment, service.address) = (taken.0, Some(taken.1));
    claims.services.insert(service, backends);
    let none = Desired { services: [].into(), ..desired.clone() };
    let words = |rig: &Rig| rig.store.entries::<Addresses4>().unwrap();
    let (mut with, mut without) = (Rig::new(), Rig::new());
    with.publish(&claims).unwrap();
    without.publish(&none).unwrap();
    assert_eq!(words(&with), words(&without));
}

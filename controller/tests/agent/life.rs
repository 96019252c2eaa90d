//! The agent as a process lives: woken by files, scraped over HTTP, stopped.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::Duration,
};

use bulkhead_controller::{agent::Agent, run::Life};
use bulkhead_dataplane::node::Node;

use crate::{
    home::eventually,
    support::{Home, INTENT, Wrapped, stored, value},
};

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Checks while the agent is at work, and stops it.
pub(crate) fn alive<N: Node>(home: &Home, mut agent: Agent<N>, check: impl FnOnce(SocketAddr)) {
    let life = Life::new(Some("127.0.0.1:0".parse().unwrap())).unwrap();
    let (address, stopper, locations) = (life.address().unwrap(), life.stopper(), home.locations());
    thread::scope(|scope| {
        let worker = scope.spawn(move || life.run(&mut agent, &locations));
        let checked = catch_unwind(AssertUnwindSafe(|| check(address)));
        stopper.stop();
        worker.join().unwrap().unwrap();
        checked.unwrap_or_else(|panic| resume_unwind(panic));
    });
}

/// What was killed while it started a program may leave its sockets to that one for a moment.
#[test]
fn an_address_that_is_about_to_be_free_is_waited_for() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(200));
            drop(taken);
        });
        assert_eq!(Life::new(Some(address)).unwrap().address(), Some(address));
    });
    let kept = TcpListener::bind("127.0.0.1:0").unwrap();
    let refused = Life::new(Some(kept.local_addr().unwrap())).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::AddrInUse);
}

#[test]
fn it_follows_files_serves_metrics_and_stops() {
    let home = Home::new();
    alive(&home, home.agent(), |address| {
        let first = get(address, "/metrics");
        assert!(first.starts_with("HTTP/1.1 200"), "{first}");
        assert!(first.contains("text/plain; version=0.0.4"), "{first}");
        assert_eq!(value(&first, "bulkhead_revision", &[]), Some(1));
        assert!(get(address, "/").starts_with("HTTP/1.1 404"));

        home.write("policies/shop.yaml", &INTENT.replace("5432", "5433"));
        eventually("the change is published", || value(&get(address, "/metrics"), "bulkhead_revision", &[]) == Some(2));
        home.write("policies/shop.yaml", "not: [a policy");
        eventually("the error is said", || value(&get(address, "/metrics"), "bulkhead_policy_error", &[]) == Some(1));
        assert_eq!(stored(&home.state()), Some(2));
    });
    assert!(home.state().join("peers.json").exists());
    assert_eq!(home.attached(), ["veth-db", "veth-web"], "everything stays in force");
}

/// An agent that would miss no guard any more ends, so that another one begins.
#[test]
fn it_does_not_outlive_who_looks_after_its_guards() {
    let home = Home::new();
    let node = Wrapped { deadly: true, ..Wrapped::new(&home) };
    let mut agent = Agent::start(node, home.settings()).unwrap_or_else(|error| panic!("{error}"));
    let life = Life::new(None).unwrap();
    let stopper = life.stopper();
    thread::spawn(move || {
        thread::sleep(Duration::from_secs(60));
        stopper.stop();
    });
    let ended = life.run(&mut agent, &home.locations()).map_err(|error| error.to_string());
    assert!(ended.as_ref().is_err_and(|why| why.contains("has died")), "{ended:?}");
    assert_eq!(home.attached(), ["veth-db", "veth-web"], "everything stays in force");
}

/// Changes a policy while scrapes or notifications about files come without end, and waits until it is in force.
fn disturbed(clients: usize, writers: usize) {
    let home = Home::new();
    let agent = Agent::start(Wrapped::new(&home), home.settings()).unwrap_or_else(|error| panic!("{error}"));
    let done = AtomicBool::new(false);
    alive(&home, agent, |address| {
        thread::scope(|scope| {
            for _ in 0..clients {
                scope.spawn(|| {
                    while !done.load(Relaxed) {
                        get(address, "/metrics");
                    }
                });
            }
            for writer in 0..writers {
                let (home, done) = (&home, &done);
                scope.spawn(move || {
                    while !done.load(Relaxed) {
                        // No policy, but a change in the directory that is watched.
                        home.write(&format!("policies/.{writer}.swp"), "");
                    }
                });
            }
            let checked = catch_unwind(AssertUnwindSafe(|| {
                for port in 5433..5436 {
                    let before = stored(&home.state()).unwrap();
                    home.write("policies/shop.yaml", &INTENT.replace("5432", &port.to_string()));
                    eventually("the change is published", || stored(&home.state()).unwrap() > before);
                }
            }));
            done.store(true, Relaxed);
            checked.unwrap_or_else(|panic| resume_unwind(panic));
        });
    });
}

#[test]
fn scrapes_without_end_do_not_keep_a_policy_from_being_applied() {
    disturbed(8, 0);
}

#[test]
fn changes_without_end_do_not_keep_a_policy_from_being_applied() {
    disturbed(0, 1);
    disturbed(8, 1);
}

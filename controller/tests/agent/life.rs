//! The agent as a process lives: woken by files, scraped over HTTP, stopped.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use bulkhead_controller::run::Life;

use crate::support::{Home, INTENT, stored, value};

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// The bound is for a machine that hangs, not for one that is slow.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < until, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn it_follows_files_serves_metrics_and_stops() {
    let home = Home::new();
    let mut agent = home.agent();
    let life = Life::new(Some("127.0.0.1:0".parse().unwrap())).unwrap();
    let (address, stopper, locations) = (life.address().unwrap(), life.stopper(), home.locations());
    thread::scope(|scope| {
        let worker = scope.spawn(move || life.run(&mut agent, &locations));
        let check = || {
            let first = get(address, "/metrics");
            assert!(first.starts_with("HTTP/1.1 200"), "{first}");
            assert!(first.contains("text/plain; version=0.0.4"), "{first}");
            assert_eq!(value(&first, "bulkhead_revision", &[]), Some(1));
            assert!(get(address, "/").starts_with("HTTP/1.1 404"));

            home.write("policies/shop.yaml", &INTENT.replace("5432", "5433"));
            eventually("the change is published", || {
                value(&get(address, "/metrics"), "bulkhead_revision", &[]) == Some(2)
            });
            home.write("policies/shop.yaml", "not: [a policy");
            eventually("the error is said", || {
                value(&get(address, "/metrics"), "bulkhead_policy_error", &[]) == Some(1)
            });
            assert_eq!(stored(&home.state()), Some(2));
        };
        let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(check));
        stopper.stop();
        worker.join().unwrap().unwrap();
        checked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    assert!(home.state().join("peers.json").exists());
    assert_eq!(home.attached(), ["veth-db", "veth-web"], "everything stays in force");
}

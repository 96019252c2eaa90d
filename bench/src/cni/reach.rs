//! How long after ADD has returned the first packet of a container is accepted on another node.

use std::{
    net::{IpAddr, Ipv4Addr, UdpSocket},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use bulkhead_tests::{
    Agent, Lab,
    chain::{Chain, Container},
};
use bulkhead_topology::{Netns, Topology};

use super::at;

const PORT: u16 = 7777;
/// Between two packets of the container.
const GAP: Duration = Duration::from_micros(200);
/// A packet that takes longer does not come.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who decides.
#[derive(Clone, Copy)]
enum Case {
    /// Both nodes: the receiver accepts that service alone, and its node knows the address beforehand, from its workloads file.
    Both,
    /// The sender's node alone: nothing isolates the receiver.
    Own,
}

impl Case {
    const ALL: [(Self, &'static str); 2] = [(Self::Both, "both nodes"), (Self::Own, "its own node")];

    fn policy(self, to: Ipv4Addr) -> String {
        let head = "apiVersion: bulkhead/v1\nkind: Intent\nnamespace: shop\n";
        match self {
            Self::Both => format!("{head}services:\n  web: {{ calls: ['db:{PORT}/udp'] }}\n  db: {{}}\n"),
            Self::Own => format!(
                "{head}external: {{ there: {{ cidrs: ['{to}/32'] }} }}\nservices:\n  web: {{ calls: ['there:{PORT}/udp'] }}\n"
            ),
        }
    }
}

/// Measures, and prints a row for each case.
///
/// # Errors
/// A container does not start, or no packet of it arrives.
pub(super) fn run(reference: &Path, starts: usize, figures: bool) -> Result<()> {
    if figures {
        println!(
            "milliseconds  from ADD's return to the first packet accepted on the other node     packets before it"
        );
        println!("decided by          p50      p99                                                             most");
    }
    for (case, who) in Case::ALL {
        let (mut times, mut most) = (Vec::new(), 0);
        let mut lab = Lab::new(Topology::builder().nodes(2).workload("db", 1))?;
        // The first of the range.
        let address = lab.topology.node(0).overlays().map(|overlay| match overlay.prefix.network() {
            IpAddr::V4(base) => IpAddr::from((u32::from(base) + 100).to_be_bytes()),
            IpAddr::V6(base) => IpAddr::from((u128::from(base) + 0x64).to_be_bytes()),
        });
        let known = match case {
            Case::Both => address.to_vec(),
            Case::Own => Vec::new(),
        };
        lab.contained.insert("web-0".to_owned(), (0, known));
        lab.write_workloads()?;
        let db = lab.topology.workload("db");
        lab.policy("shop.yaml", &case.policy(db.v4))?;
        let arrivals = Arrivals::watch(&db.netns, db.v4)?;
        let _agents = [Agent::start(&lab, 0, &[])?, Agent::start(&lab, 1, &[])?];
        // The first one fills caches.
        for start in 0..=starts {
            // A fresh store of addresses each time: the container has the same one again.
            let chain = Chain::new(&lab, 0, reference, "1.0.0", 100);
            let mut web = Container::new("web-0");
            chain.add(&mut web).map_err(|refused| anyhow::anyhow!("{refused}"))?;
            let returned = Instant::now();
            let (accepted, before) = first(&web.netns, db.v4, start, &arrivals)?;
            chain.del(&web);
            if start > 0 {
                times.push(accepted.saturating_duration_since(returned));
                most = before.max(most);
            }
        }
        if figures {
            println!("{who:<14} {:>8.1} {:>8.1} {most:>64}", at(&times, 50), at(&times, 99));
        }
    }
    Ok(())
}

/// Sends packets until one has arrived. Returns when it did, and how many before it did not.
fn first(from: &Netns, to: Ipv4Addr, start: usize, arrivals: &Arrivals) -> Result<(Instant, u32)> {
    let socket = from.run(|| UdpSocket::bind(("0.0.0.0", 0))).context("the container's socket")?;
    let (start, begin) = (u32::try_from(start)?, Instant::now());
    for number in 0_u32.. {
        // The way may not be there yet: that is what is measured.
        let _ = socket.send_to(&[start.to_ne_bytes(), number.to_ne_bytes()].concat(), (to, PORT));
        match arrivals.seen.recv_timeout(GAP) {
            Ok((of, number, accepted)) if of == start => return Ok((accepted, number)),
            Ok(_) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => bail!("the receiver ended"),
        }
        if begin.elapsed() > PATIENCE {
            bail!("no packet of start {start} arrived within {PATIENCE:?}");
        }
    }
    bail!("the numbers of packets are used up")
}

/// A socket on the other node, and what arrived there: start, number of the packet, and when.
struct Arrivals {
    seen: Receiver<(u32, u32, Instant)>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Arrivals {
    fn watch(netns: &Netns, address: Ipv4Addr) -> Result<Self> {
        let socket = netns.run(|| UdpSocket::bind((address, PORT))).context("the receiver's socket")?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let (tell, seen) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new().name("arrivals".to_owned()).spawn(move || {
            let mut packet = [0; 8];
            while !stopped.load(Relaxed) {
                let Ok(8) = socket.recv(&mut packet) else { continue };
                let accepted = Instant::now();
                let [start, number] =
                    [0, 4].map(|at| u32::from_ne_bytes([packet[at], packet[at + 1], packet[at + 2], packet[at + 3]]));
                if tell.send((start, number, accepted)).is_err() {
                    break;
                }
            }
        })?;
        Ok(Self { seen, stop, thread: Some(thread) })
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            // Nothing is lost with one that ended early.
            let _ = thread.join();
        }
    }
}

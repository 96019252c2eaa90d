//! Probes between workloads.

use std::{net::IpAddr, time::Duration};

use bulkhead_tests::{Lab, bulkhead};
use bulkhead_topology::traffic::{Outcome, TcpEcho, UdpEcho};

/// For what must happen: long enough for a machine that is busy with other things.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// For what must not happen.
pub(crate) const BRIEF: Duration = Duration::from_millis(150);

/// What a probe asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    Tcp(u16),
    Udp(u16),
    Ping,
}

/// Servers of a workload, on both of its addresses.
pub(crate) struct Servers {
    tcp: Vec<TcpEcho>,
    udp: Vec<UdpEcho>,
}

impl Servers {
    pub(crate) fn start(lab: &Lab, workload: &str, tcp: &[u16], udp: &[u16]) -> Self {
        let workload = lab.topology.workload(workload);
        let places = |ports: &[u16]| {
            let addresses = workload.addresses();
            ports.iter().flat_map(|&port| addresses.map(|address| (address, port).into())).collect::<Vec<_>>()
        };
        Self {
            tcp: places(tcp).into_iter().map(|at| TcpEcho::start(&workload.netns, at).unwrap()).collect(),
            udp: places(udp).into_iter().map(|at| UdpEcho::start(&workload.netns, at).unwrap()).collect(),
        }
    }

    /// Connections and datagrams that reached the servers so far.
    pub(crate) fn seen(&self) -> u64 {
        self.tcp.iter().map(TcpEcho::accepted).sum::<u64>() + self.udp.iter().map(UdpEcho::received).sum::<u64>()
    }
}

/// Asks from a workload.
pub(crate) fn ask(lab: &Lab, from: &str, to: IpAddr, ask: Ask, deadline: Duration) -> Outcome {
    let client = lab.topology.workload(from).client().deadline(deadline);
    match ask {
        Ask::Tcp(port) => client.tcp((to, port).into()),
        Ask::Udp(port) => client.udp((to, port).into()),
        Ask::Ping => client.ping(to),
    }
    .unwrap()
}

/// Both families are answered.
#[track_caller]
pub(crate) fn allowed(lab: &Lab, from: &str, to: &str, what: Ask) {
    for address in lab.topology.workload(to).addresses() {
        let outcome = ask(lab, from, address, what, PATIENCE);
        assert_eq!(outcome, Outcome::Answered, "{from} -> {to} ({address}) {what:?}");
    }
}

/// Neither family is answered.
#[track_caller]
pub(crate) fn denied(lab: &Lab, from: &str, to: &str, what: Ask) {
    for address in lab.topology.workload(to).addresses() {
        let outcome = ask(lab, from, address, what, BRIEF);
        assert_eq!(outcome, Outcome::TimedOut, "{from} -> {to} ({address}) {what:?}");
    }
}

/// What the command line says on a node.
#[track_caller]
pub(crate) fn command_line(lab: &Lab, node: usize, words: &[&str]) -> String {
    let mut command = lab.topology.node(node).netns.command(bulkhead().unwrap());
    command.args(words);
    // Where the agent is dead, or not all is well, the status says so in its exit status too.
    let status = words.first() == Some(&"status");
    let asks = matches!(words.first(), Some(&("get" | "observe"))) && !words.contains(&"--offline");
    if status || asks {
        command.arg("--socket").arg(lab.socket(node));
    }
    if !asks {
        command.arg("--pins").arg(lab.pins(node)).arg("--state").arg(lab.state(node));
    }
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success() || status && output.status.code() == Some(2),
        "{words:?}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

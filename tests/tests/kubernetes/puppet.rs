//! A node that is only in the API server and on the wire: nobody runs there, and what it sends is made here, packet by packet.

use std::{
    fs,
    io::ErrorKind,
    net::{Ipv4Addr, UdpSocket},
    time::{Duration, Instant},
};

use bulkhead_cluster::Node;
use bulkhead_fixtures::{Frame, VXLAN_PORT, tcp};
use bulkhead_topology::{Mac, traffic::fresh_port};
use serde_json::{Value, json};

use bulkhead_tests::guarded::{Guarded, pod};

/// flannel's.
const VNI: u32 = 1;
/// Port of what is called.
const CALLED: u16 = 8080;
/// How long an answer may take to come. What comes later is no answer.
const ANSWER: Duration = Duration::from_secs(1);

pub(crate) struct Puppet<'a> {
    guarded: &'a Guarded,
    number: u8,
    socket: UdpSocket,
}

impl<'a> Puppet<'a> {
    /// On the wire: with an address of the underlay, from which it can send what it likes, and nobody knows it yet.
    pub(crate) fn new(guarded: &'a Guarded, number: u8) -> Self {
        let address = Ipv4Addr::new(172, 31, 77, number);
        let host = guarded.cluster.control_plane();
        let add = host.command("ip").args(["address", "add", &format!("{address}/24"), "dev", "underlay"]).status();
        assert!(add.unwrap().success());
        let socket = host.run(|| UdpSocket::bind((address, VXLAN_PORT))).unwrap();
        Self { guarded, number, socket }
    }

    /// Root on a real node, who sends beside the tunnel's own socket. Answers go there.
    pub(crate) fn of(guarded: &'a Guarded, node: usize) -> Self {
        let of = guarded.cluster.node(node);
        let socket = of.netns.run(|| UdpSocket::bind((of.address, 0))).unwrap();
        Self { guarded, number: u8::try_from(node + 1).unwrap(), socket }
    }

    pub(crate) fn name(&self) -> String {
        format!("n{}", self.number)
    }

    fn mac(&self) -> Mac {
        [2, 0, 0, 0, 0, self.number]
    }

    /// Says in the API server, as flannel does, that it is a node with this range of pods.
    pub(crate) fn register(&self, range: &str) {
        self.guarded.apply(&self.object(range).to_string());
    }

    fn object(&self, range: &str) -> Value {
        let data = format!(r#"{{"VNI":{VNI},"VtepMAC":"02:00:00:00:00:{:02x}"}}"#, self.number);
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": { "name": self.name(), "annotations": {
                "flannel.alpha.coreos.com/backend-type": "vxlan",
                "flannel.alpha.coreos.com/backend-data": data,
                "flannel.alpha.coreos.com/kube-subnet-manager": "true",
                "flannel.alpha.coreos.com/public-ip": self.socket.local_addr().unwrap().ip(),
            } },
            "spec": { "podCIDR": range, "podCIDRs": [range] },
        })
    }

    /// Sends a frame to a node by the tunnel.
    pub(crate) fn send(&self, frame: &Frame, node: &Node) {
        let datagram = [&[8, 0, 0, 0][..], &(VNI << 8).to_be_bytes(), &frame.build()].concat();
        self.socket.send_to(&datagram, (node.address, VXLAN_PORT)).unwrap();
    }

    /// Whether a pod of a node answers a call that comes from this address by the tunnel.
    pub(crate) fn is_answered(&self, from: Ipv4Addr, node: &Node, to: Ipv4Addr) -> bool {
        let port = fresh_port();
        let call = Frame::eth(self.mac(), mac_of(node, "flannel.1")).ipv4(from, to).tcp(port, CALLED, tcp::SYN);
        self.send(&call, node);
        let answer = [&to.octets()[..], &from.octets(), &CALLED.to_be_bytes(), &port.to_be_bytes()].concat();
        let mut datagram = [0; 2048];
        let end = Instant::now() + ANSWER;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.socket.set_read_timeout(Some(left)).unwrap();
            match self.socket.recv(&mut datagram) {
                // Behind the header of the tunnel, that of the frame and what stands before the addresses.
                Ok(length) if datagram[..length].get(8 + 14 + 12..8 + 14 + 24) == Some(&answer) => return true,
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return false,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// Nodes of the same names come in place of these, with other ranges, and all in one call: as long as it is one, a node keeps its range.
pub(crate) fn replace(guarded: &Guarded, nodes: [(&Puppet<'_>, &str); 2]) {
    let items = nodes.map(|(node, range)| node.object(range));
    let file = guarded.cluster.directory().join("nodes.json");
    fs::write(&file, json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string()).unwrap();
    guarded.kubectl(&["replace", "--force", "--filename", file.to_str().unwrap()]);
}

/// How many tunnel packets a node has dropped for a reason.
pub(crate) fn dropped(guarded: &Guarded, node: usize, reason: &str) -> f64 {
    let labels = ["verdict=\"blocked\"", &format!("reason=\"{reason}\"")];
    guarded.metric(node, "bulkhead_underlay_packets_total", &labels)
}

/// That of a link of a node.
pub(crate) fn mac_of(node: &Node, link: &str) -> Mac {
    let said = node.command("cat").arg(format!("/sys/class/net/{link}/address")).output().unwrap();
    let text = String::from_utf8(said.stdout).unwrap();
    let bytes: Vec<u8> = text.trim().split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

/// A pod of the shop on a puppet's node, by its label.
pub(crate) fn puppet(name: &str, node: &str, app: &str) -> String {
    pod(name, node, "args: [pause]").replace(&format!("app: {name}"), &format!("app: {app}"))
}

/// Says that a pod has an address.
pub(crate) fn claim(guarded: &Guarded, pod: &str, address: Ipv4Addr) {
    let status = json!({ "status": { "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }] } });
    let patch = ["--namespace=shop", "patch", "pod", pod, "--subresource=status", "--type=merge", "--patch"];
    guarded.kubectl(&[&patch[..], &[&status.to_string()]].concat());
}

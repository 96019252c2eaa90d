//! A service address: the nodes translate it with nftables, as kube-proxy does.

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::Stdio,
};

use anyhow::{Context as _, Result, ensure};
use bulkhead_tests::{Lab, Service};

/// What calls name it by.
pub(crate) const NAME: &str = "payments' address";
/// Who answers.
pub(crate) const BACKEND: &str = "payments";
/// Its port.
pub(crate) const PORT: u16 = 80;
/// The port on which the container listens.
pub(crate) const TARGET: u16 = 9090;
/// No link has them.
pub(crate) const ADDRESSES: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 96, 3, 5)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0x35))];

/// As the workloads file tells it.
pub(crate) fn entry() -> Service {
    Service { addresses: ADDRESSES, port: PORT, target: TARGET, ..Service::new(BACKEND, 0, &[BACKEND]) }
}

/// Makes the nodes translate it. The rules go with the nodes' namespaces.
pub(crate) fn install(lab: &Lab) -> Result<()> {
    let rules = rules(lab);
    for node in lab.topology.nodes() {
        let mut nft = node.netns.command("nft");
        let mut nft = nft.args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().context("nft")?;
        nft.stdin.take().context("stdin is a pipe")?.write_all(rules.as_bytes())?;
        let output = nft.wait_with_output()?;
        ensure!(output.status.success(), "nft on {}: {}", node.name, String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// kube-proxy's own shape, with what this service needs of it.
fn rules(lab: &Lab) -> String {
    let backend = lab.topology.workload(BACKEND).addresses();
    let table = |address: IpAddr, backend: IpAddr| {
        let (family, kind) = if address.is_ipv4() { ("ip", "ipv4_addr") } else { ("ip6", "ipv6_addr") };
        let to = SocketAddr::new(backend, TARGET);
        format!(
            "table {family} kube-proxy {{
                chain endpoint {{ meta l4proto tcp dnat to {to}; }}
                chain service {{ numgen random mod 1 vmap {{ 0 : goto endpoint }}; }}
                map service-ips {{
                    type {kind} . inet_proto . inet_service : verdict
                    elements = {{ {address} . tcp . {PORT} : goto service }}
                }}
                chain services {{ {family} daddr . meta l4proto . th dport vmap @service-ips; }}
                chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
                chain nat-output {{ type nat hook output priority -100; jump services; }}
            }}\n"
        )
    };
    let [v4, v6] = ADDRESSES;
    table(v4, backend[0]) + &table(v6, backend[1])
}

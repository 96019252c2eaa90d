//! What kube-proxy and flannel write into the tables of a node: addresses of services lead to backends.

use std::{
    fmt::Write as _,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::Stdio,
};

use anyhow::{Context as _, Result, ensure};

use crate::{Lab, lab::list};

/// A service with an address of each family.
#[derive(Clone, Debug)]
pub struct Service {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// `10.96.0.N` and `fd00:96::N`.
    pub addresses: [IpAddr; 2],
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// Port that is called.
    pub port: u16,
    /// Port of the backends.
    pub target: u16,
    /// Port of every node that leads there, too.
    pub node_port: Option<u16>,
    /// Workloads that answer.
    pub workloads: Vec<String>,
    /// Addresses outside that answer.
    pub outside: Vec<IpAddr>,
    /// The workload that nodes choose each time; by chance unless said.
    pub chosen: Option<String>,
    /// Whether the workloads file knows it.
    pub listed: bool,
}

impl Service {
    /// From port 80 to port 8080, over TCP, in namespace `shop`.
    #[must_use]
    pub fn new(name: &str, number: u8, workloads: &[&str]) -> Self {
        Self {
            name: name.into(),
            namespace: "shop".into(),
            addresses: [
                Ipv4Addr::new(10, 96, 0, number).into(),
                Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, number.into()).into(),
            ],
            protocol: "tcp",
            port: 80,
            target: 8080,
            node_port: None,
            workloads: workloads.iter().map(|&workload| workload.to_owned()).collect(),
            outside: Vec::new(),
            chosen: None,
            listed: true,
        }
    }

    /// As the workloads file writes it.
    pub(crate) fn entry(&self) -> String {
        let node_port = self.node_port.map_or_else(String::new, |port| format!(", nodePort: {port}"));
        let outside = self.outside.iter().map(ToString::to_string);
        let backends: Vec<_> = self.workloads.iter().cloned().chain(outside).collect();
        format!(
            "{{ name: {}, namespace: {}, addresses: {}, backends: {}, \
             ports: [{{ port: {}, target: {}, protocol: {}{node_port} }}] }}",
            self.name,
            self.namespace,
            list(&self.addresses),
            list(&backends),
            self.port,
            self.target,
            self.protocol,
        )
    }

    /// Whom a node may choose, of a family.
    fn backends(&self, lab: &Lab, v4: bool) -> Vec<IpAddr> {
        let workloads = self.workloads.iter().filter(|&name| self.chosen.as_ref().is_none_or(|chosen| chosen == name));
        let workloads = workloads.flat_map(|name| lab.topology.workload(name).addresses());
        workloads.chain(self.outside.iter().copied()).filter(|backend| backend.is_ipv4() == v4).collect()
    }
}

impl Lab {
    /// Makes every node translate [`Lab::services`], as kube-proxy does it, and masquerade what leaves the overlay, as flannel does it.
    ///
    /// # Errors
    /// What nft refuses.
    pub fn proxy(&self) -> Result<()> {
        for node in 0..self.topology.nodes().len() {
            for v4 in [true, false] {
                self.nft(node, &self.rules(node, v4)?)?;
            }
        }
        Ok(())
    }

    /// Runs a script of nft on a node.
    ///
    /// # Errors
    /// What nft says.
    pub fn nft(&self, node: usize, script: &str) -> Result<()> {
        let mut command = self.topology.node(node).netns.command("nft");
        let mut nft = command.args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        nft.stdin.take().context("a pipe")?.write_all(script.as_bytes())?;
        let output = nft.wait_with_output()?;
        ensure!(output.status.success(), "nft: {}\n{script}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn rules(&self, node: usize, v4: bool) -> Result<String> {
        let ip = if v4 { "ip" } else { "ip6" };
        let mut text = format!("table {ip} kube-proxy\ndelete table {ip} kube-proxy\ntable {ip} kube-proxy {{\n");
        let mut services = String::new();
        for (number, service) in self.services.iter().enumerate() {
            let backends = service.backends(self, v4);
            if backends.is_empty() {
                continue;
            }
            let mut choices = Vec::new();
            for (index, &backend) in backends.iter().enumerate() {
                let to = SocketAddr::from((backend, service.target));
                let protocol = service.protocol;
                writeln!(text, " chain sep-{number}-{index} {{")?;
                writeln!(text, "  {ip} saddr {backend} meta mark set meta mark or 0x4000")?;
                writeln!(text, "  meta l4proto {protocol} dnat to {to}\n }}")?;
                choices.push(format!("{index} : goto sep-{number}-{index}"));
            }
            writeln!(text, " chain svc-{number} {{")?;
            writeln!(text, "  numgen random mod {} vmap {{ {} }}\n }}", backends.len(), choices.join(", "))?;
            writeln!(text, " chain ext-{number} {{\n  meta mark set meta mark or 0x4000\n  goto svc-{number}\n }}")?;
            let (address, protocol) = (service.addresses[usize::from(!v4)], service.protocol);
            writeln!(services, "  {ip} daddr {address} {protocol} dport {} goto svc-{number}", service.port)?;
            if let Some(port) = service.node_port {
                writeln!(services, "  fib daddr type local {protocol} dport {port} goto ext-{number}")?;
            }
        }
        let prefix = |node: usize| {
            let node = self.topology.node(node);
            if v4 { node.overlay4.prefix } else { node.overlay6.prefix }
        };
        let overlay: Vec<_> = (0..self.topology.nodes().len()).map(|node| prefix(node).to_string()).collect();
        writeln!(text, " chain services {{\n{services} }}")?;
        writeln!(text, " chain prerouting {{\n  type nat hook prerouting priority -100\n  jump services\n }}")?;
        writeln!(text, " chain output {{\n  type nat hook output priority -100\n  jump services\n }}")?;
        writeln!(text, " chain mark-masq {{\n  meta mark set meta mark xor 0x4000\n  masquerade fully-random\n }}")?;
        writeln!(text, " chain postrouting {{\n  type nat hook postrouting priority 100")?;
        writeln!(text, "  meta mark and 0x4000 == 0x4000 goto mark-masq")?;
        writeln!(text, "  {ip} saddr {} {ip} daddr != {{ {} }} masquerade", prefix(node), overlay.join(", "))?;
        text.push_str(" }\n}\n");
        Ok(text)
    }
}

//! Who calls whom, and what each may.

use bulkhead_cluster::{Cluster, ProxyMode};
use bulkhead_tests::guarded::{Guarded, NAMESPACE, Way, pod};

/// Ports of all nodes.
pub(super) const CART_NODE_PORT: u16 = 30080;
pub(super) const DB_NODE_PORT: u16 = 30081;
pub(super) const CART_LOCAL_NODE_PORT: u16 = 30082;
/// Of the node of `cart-1` alone.
pub(super) const HOST_PORT: u16 = 8088;
/// Where the pod in its node's own network listens.
pub(super) const HOST: u16 = 9090;

/// What each may: nothing but what these allow.
pub(super) const POLICIES: &str = include_str!("policies.yaml");
const SERVICES: &str = include_str!("services.yaml");

/// A guarded cluster in which they run.
pub(super) struct Shop {
    pub(super) guarded: Guarded,
}

impl Shop {
    pub(super) fn open(proxy: ProxyMode, direct: bool) -> Option<Self> {
        let guarded = Guarded::start_as(Cluster::builder().proxy(proxy), Way { direct, ..Way::default() })?;
        let cart = |name: &str, node, part: &str, ports: &str| {
            server(name, node, ports).replace(&format!("app: {name}"), &format!("app: cart, part: '{part}'"))
        };
        let replica = |app: &str, name: &str, node| {
            server(name, node, "").replace(&format!("app: {name}"), &format!("app: {app}"))
        };
        let host_port = format!(", ports: [{{ containerPort: 8080, hostPort: {HOST_PORT} }}]");
        let host = pod(
            "host",
            "n1",
            &format!(
                "args: [netexec, '--http-port={HOST}', '--udp-port=-1'], ports: [{{ name: web, containerPort: {HOST} }}]"
            ),
        );
        let pods = [
            cart("cart-1", "n1", "1", &host_port),
            cart("cart-2", "n2", "2", ""),
            server("db", "n2", ""),
            replica("web", "web-1", "n1"),
            replica("web", "web-2", "n2"),
            server("guest", "n1", ""),
            server("vip", "n1", ""),
            server("ops", "n1", ""),
            replica("ops", "ops-2", "n2"),
            host.replace("  nodeName:", "  hostNetwork: true\n  nodeName:"),
        ];
        // Before any pod, so that all are isolated from their first packet.
        guarded.apply(&[NAMESPACE, POLICIES, "---\n", SERVICES].concat());
        guarded.apply(&pods.concat());
        guarded.wait_for(&["cart-1", "cart-2", "db", "web-1", "web-2", "guest", "vip", "ops", "ops-2", "host"]);
        Some(Self { guarded })
    }

    /// `ADDRESS:PORT` of a service.
    pub(super) fn service(&self, name: &str) -> String {
        let address = "--output=jsonpath={.spec.clusterIP}:{.spec.ports[0].port}";
        self.guarded.kubectl(&["--namespace=shop", "get", "service", name, address])
    }

    /// `ADDRESS:PORT` of a node on the underlay.
    pub(super) fn node(&self, node: usize, port: u16) -> String {
        format!("{}:{port}", self.address_of_node(node))
    }

    pub(super) fn address_of_node(&self, node: usize) -> String {
        self.guarded.cluster.node(node).address.to_string()
    }

    /// Addresses by which a node sends to pods: of its bridge, to its own, and of its VXLAN device, to those of other nodes.
    pub(super) fn senders(&self, node: usize) -> [String; 2] {
        let name = &self.guarded.cluster.node(node).name;
        let range = self.guarded.kubectl(&["get", "node", name, "--output=jsonpath={.spec.podCIDR}"]);
        let device = range.split('/').next().unwrap().to_owned();
        [format!("{}1", device.strip_suffix('0').unwrap()), device]
    }

    /// Address of [`Caller::Outside`](super::calls::Caller::Outside).
    pub(super) fn outside(&self) -> String {
        let address = "--output=jsonpath={.endpoints[0].addresses[0]}";
        self.guarded.kubectl(&["get", "endpointslice", "kubernetes", address])
    }

    /// Lets whoever has these addresses call `cart`, until the value is dropped.
    pub(super) fn open_cart(&self, addresses: &[String]) -> Opened<'_> {
        let from: Vec<_> = addresses.iter().map(|address| block(address)).collect();
        let rule = format!("from: [{}], ports: [{{ port: 8080 }}]", from.join(", "));
        self.opened(&format!("podSelector: {{ matchLabels: {{ app: cart }} }}, ingress: [{{ {rule} }}]"))
    }

    /// Lets `vip` call a port of an address, until the value is dropped.
    pub(super) fn open_to(&self, address: &str, port: u16) -> Opened<'_> {
        let rule = format!("to: [{}], ports: [{{ port: {port} }}]", block(address));
        let pods = "podSelector: { matchLabels: { app: vip } }";
        self.opened(&format!("{pods}, policyTypes: [Egress], egress: [{{ {rule} }}]"))
    }

    fn opened(&self, policy: &str) -> Opened<'_> {
        self.guarded.apply(&format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
             metadata: {{ name: opened, namespace: shop }}\nspec: {{ {policy} }}\n"
        ));
        Opened(self)
    }
}

fn block(address: &str) -> String {
    format!("{{ ipBlock: {{ cidr: {address}/32 }} }}")
}

fn server(name: &str, node: &str, ports: &str) -> String {
    let probe = |kind: &str| format!(", {kind}: {{ httpGet: {{ path: /, port: 8080 }}, periodSeconds: 1 }}");
    pod(name, node, &format!("args: [netexec]{ports}{}{}", probe("readinessProbe"), probe("livenessProbe")))
}

/// A policy that goes with the value.
pub(super) struct Opened<'a>(&'a Shop);

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        // After a panic there may be no cluster.
        let _ = self.0.guarded.cluster.kubectl(&["--namespace=shop", "delete", "networkpolicy", "opened"]);
    }
}

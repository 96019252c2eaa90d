//! Encapsulated packets that the third host forges.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use bulkhead_ebpf::reason::Reason;
use bulkhead_fixtures::{Frame, tcp};
use bulkhead_topology::traffic::{Capture, RawLink, fresh_port};

use crate::{
    calls::{Call, PATIENCE, guarded},
    shop::Shop,
};

/// The node on which `db` runs.
pub(crate) const NODE: usize = 1;

/// One kind of forgery. Inside is always a call of `db` at its port that claims to come from somebody.
pub(crate) struct Forgery {
    pub(crate) what: String,
    /// What the programs shall call it.
    pub(crate) reason: Reason,
    outer: Ipv4Addr,
    inner: Ipv4Addr,
    vni: u32,
}

/// `cart` may call `db`: only the boundary stands between a forger and the database.
pub(crate) fn kinds(shop: &Shop) -> [Forgery; 3] {
    let topology = &shop.lab.topology;
    let vni = topology.node(NODE).overlay4.vni;
    let (outsider, member) = (topology.outsider().underlay.v4, topology.node(0).underlay.v4);
    let (cart, payments) = (topology.workload("cart").v4, topology.workload("payments").v4);
    [
        Forgery {
            what: format!("from its own address, \"cart calls db\" inside (VNI {vni})"),
            reason: Reason::UnknownVtep,
            outer: outsider,
            inner: cart,
            vni,
        },
        Forgery {
            what: format!("as if n1 had sent it, \"payments calls db\" inside, but payments lives on n2 (VNI {vni})"),
            reason: Reason::WrongVtep,
            outer: member,
            inner: payments,
            vni,
        },
        Forgery {
            what: format!(
                "as if n1 had sent it, \"cart calls db\" inside, in an overlay that is none (VNI {})",
                vni + 1
            ),
            reason: Reason::UnknownVni,
            outer: member,
            inner: cart,
            vni: vni + 1,
        },
    ]
}

impl Forgery {
    /// A frame as it goes onto the underlay. The inner source port is what a capture knows it by.
    fn frame(&self, shop: &Shop, mark: u16) -> Vec<u8> {
        let topology = &shop.lab.topology;
        let (outsider, node) = (topology.outsider(), topology.node(NODE));
        let inner = Frame::eth(topology.node(0).overlay4.device.mac, node.overlay4.device.mac)
            .ipv4(self.inner, topology.workload("db").v4)
            .tcp(mark, 5432, tcp::SYN);
        Frame::eth(outsider.underlay.link.mac, node.underlay.link.mac)
            .ipv4(self.outer, node.underlay.v4)
            .udp(fresh_port(), node.overlay4.port)
            .vxlan(self.vni)
            .inner(inner)
            .build()
    }
}

/// A capture in `db`'s own namespace, of what comes from this port.
fn capture(shop: &Shop, mark: u16) -> Result<Capture> {
    let wanted = mark.to_be_bytes();
    let db = shop.party("db").netns;
    Ok(Capture::start(db, "eth0", move |frame| frame.bytes.get(34..36) == Some(&wanted[..]))?)
}

/// Sends one while nobody guards `db`. Returns whether it got there.
pub(crate) fn arrives(shop: &Shop, forgery: &Forgery) -> Result<bool> {
    let mark = fresh_port();
    let seen = capture(shop, mark)?;
    send(shop, forgery, mark)?;
    Ok(seen.wait_for(1, PATIENCE))
}

/// Sends one to a guarded node. Returns whether nothing of it got to `db` *and* the kernel counted it with its reason.
pub(crate) fn dropped(shop: &Shop, forgery: &Forgery) -> Result<bool> {
    shop.stop.check()?;
    let mark = fresh_port();
    let seen = capture(shop, mark)?;
    let before = shop.packets(NODE, None, forgery.reason)?;
    send(shop, forgery, mark)?;
    // A genuine call takes the same way after it: once that has arrived, the forged one would have, too.
    let genuine = guarded(shop, &[Call::tcp("cart", "db", 5432)])?;
    ensure!(
        genuine.iter().all(|answer| answer.expected.allowed && answer.agrees()),
        "cart cannot call db: {genuine:?}"
    );
    let seen = seen.stop()?;
    ensure!(seen.lost == 0, "the capture lost frames, so it is no evidence");
    Ok(seen.frames.is_empty() && shop.packets(NODE, None, forgery.reason)? == before + 1)
}

fn send(shop: &Shop, forgery: &Forgery, mark: u16) -> Result<()> {
    let link = RawLink::open(&shop.lab.topology.outsider().netns, "eth0")?;
    Ok(link.send(&forgery.frame(shop, mark))?)
}

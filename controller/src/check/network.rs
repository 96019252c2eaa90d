//! Overlays, the links under them, what hangs on links, and routes that go around overlays.

use bulkhead_dataplane::{
    check::{Driver, Facts, Foreign, Hanging, Place},
    network::{PlainRoute, Reach, Survey, SurveyedLink, VxlanDevice, XdpPlace},
};

use super::{AS_ROOT, Line};

pub(super) fn judge(facts: &Facts) -> Vec<Line> {
    let survey = match &facts.network {
        Ok(survey) => survey,
        Err(why) => return vec![Line::problem("network", why, AS_ROOT)],
    };
    let mut lines = overlays(survey);
    for link in survey.links.iter().filter(|link| link.underlay) {
        lines.push(underlay(facts, link));
    }
    lines.extend(hanging(facts));
    lines.extend(routes(survey));
    lines
}

const OVERLAY: &str = "overlay";

fn overlays(survey: &Survey) -> Vec<Line> {
    if survey.devices.is_empty() {
        return vec![Line::warning(
            OVERLAY,
            "no VXLAN device in this network namespace: containers of this node alone would be guarded",
            "start the network first, or run in the namespace of its devices: Docker's are below /run/docker/netns \
             (`nsenter --net=/run/docker/netns/NAME bulkhead check`)",
        )];
    }
    survey.devices.iter().map(overlay).collect()
}

fn overlay(device: &VxlanDevice) -> Line {
    let entries = match device.permanent {
        1 => "1 permanent entry".to_owned(),
        number => format!("{number} permanent entries"),
    };
    let found = format!(
        "{}: {}, UDP port {}, {}, learning {}, {entries}, {} other VTEPs with {} prefixes, by {}",
        device.device,
        device.vni.map_or("no VNI of its own".to_owned(), |vni| format!("VNI {vni}")),
        device.port,
        device.own.map_or("no VTEP address of its own".to_owned(), |own| format!("own VTEP {own}")),
        if device.learning { "on" } else { "off" },
        device.peers,
        device.owned,
        if device.underlays.is_empty() { "no link".to_owned() } else { device.underlays.join(" and ") },
    );
    if device.vni.is_none() {
        return Line::warning(
            OVERLAY,
            format!("{found}; the device takes a VNI from each packet, and is not guarded"),
            "have the network make one device for each VNI, as flannel and Docker do",
        );
    }
    if device.elsewhere {
        return Line::warning(
            OVERLAY,
            format!("{found}; its socket, and so the underlay, is in another network namespace"),
            "run this, and the agent, in the namespace that made the device as well: tunnel packets are checked there",
        );
    }
    if device.underlays.is_empty() {
        return Line::problem(
            OVERLAY,
            format!("{found}; tunnel packets could be checked nowhere, and all would be dropped"),
            "give the device a link (`dev`), a `local` address that some link has, or the node a default route",
        );
    }
    if !device.learned.is_empty() {
        let learned: Vec<String> = device.learned.iter().map(ToString::to_string).collect();
        return Line::warning(
            OVERLAY,
            format!("{found}; {} known by learning alone: their packets would be dropped", learned.join(", ")),
            "have the network write static entries for each node (`bridge fdb replace MAC dev DEVICE dst VTEP self permanent`), as flannel and \
             Docker do: what was learned from packets can be forged",
        );
    }
    if device.learning && device.peers == 0 {
        return Line::warning(
            OVERLAY,
            format!("{found}; what it will learn binds nobody, so that packets of other nodes would be dropped"),
            "have the network write static entries for each node, as flannel and Docker do",
        );
    }
    Line::ok(OVERLAY, found)
}

/// An Ethernet frame beyond this does not fit the buffer that a driver gives to XDP: a page of 4096 bytes without headroom (256) and
/// `skb_shared_info` (320).
const ONE_BUFFER: u32 = 4096 - 256 - 320 - 14;

fn underlay(facts: &Facts, link: &SurveyedLink) -> Line {
    const TOPIC: &str = "underlay";
    let driver = facts.drivers.iter().find(|(name, _)| *name == link.name).map(|(_, driver)| driver);
    let name = match driver.map(|driver| &driver.name) {
        Some(Ok(name)) => format!("driver {name}"),
        Some(Err(why)) => format!("driver unknown ({why})"),
        None => "driver unknown".to_owned(),
    };
    let found = format!("{}: {name}, MTU {}", link.name, link.mtu);
    let strangers = xdp_of_others(facts, &link.name);
    if !strangers.is_empty() {
        return Line::warning(
            TOPIC,
            format!("{found}, XDP {} of somebody else", strangers.join(" and ")),
            "it stays, and runs before everything of Bulkhead: leave `--xdp off` (the default; TC checks the same), and make sure that it \
             redirects no tunnel packets past TC",
        );
    }
    match driver.map(|driver| (&driver.name, &driver.xdp)) {
        Some((name, Ok(features))) => {
            let driver = name.as_deref().unwrap_or_default();
            Line::ok(
                TOPIC,
                format!("{found}, no XDP program of others; `--xdp native` {}", native(driver, *features, link.mtu)),
            )
        }
        Some((_, Err(why))) => Line::warning(
            TOPIC,
            format!("{found}, no XDP program of others; what `--xdp native` would do is not known: {why}"),
            "leave `--xdp off`, the default, or try it when a reset of the link does not matter",
        ),
        None => Line::warning(TOPIC, format!("{found}; its driver was not asked"), AS_ROOT),
    }
}

/// What attaching in the driver would do.
fn native(driver: &str, features: u64, mtu: u32) -> String {
    if features & Driver::XDP_BASIC == 0 {
        return "would be refused, the driver has no XDP".to_owned();
    }
    if features & Driver::XDP_FRAGMENTS == 0 && mtu > ONE_BUFFER {
        return format!(
            "may be refused: a packet of {mtu} bytes does not fit one buffer, and the driver gives no more"
        );
    }
    match driver {
        "veth" => "would work, resets nothing, and costs the peer TSO".to_owned(),
        "virtio_net" => "would work where the host left enough queues, and stops the link for a moment".to_owned(),
        _ => "would work, and may reset the link: most drivers drop packets for up to some seconds".to_owned(),
    }
}

fn xdp_of_others(facts: &Facts, link: &str) -> Vec<String> {
    let hanging = facts.hanging.iter().filter(|hanging| hanging.link == link);
    let foreign = hanging.flat_map(|hanging| hanging.foreign.iter().flatten());
    foreign.filter(|foreign| matches!(foreign.place, Place::Xdp(_))).map(describe).collect()
}

const fn place(place: Place) -> &'static str {
    match place {
        Place::Xdp(XdpPlace::Native) => "native",
        Place::Xdp(XdpPlace::Generic) => "generic",
        Place::Xdp(XdpPlace::Hardware) => "hardware",
        Place::TcxIngress => "TCX ingress",
        Place::TcxEgress => "TCX egress",
        Place::ClsactIngress => "clsact ingress",
        Place::ClsactEgress => "clsact egress",
    }
}

fn describe(foreign: &Foreign) -> String {
    let mut text = place(foreign.place).to_owned();
    match foreign.id {
        Some(id) => text += &format!(" program {id}"),
        None => text += " filter that is no program",
    }
    if !foreign.name.is_empty() {
        text += &format!(" ({})", foreign.name);
    }
    if let Some(priority) = foreign.priority {
        text += &format!(" at priority {priority}");
    }
    text
}

const FILTERS: &str = "filters";

/// What others have on the guarded links, but for XDP, which stands with its link.
fn hanging(facts: &Facts) -> Vec<Line> {
    let mut lines: Vec<Line> = facts.hanging.iter().flat_map(|hanging| filters(facts, hanging)).collect();
    if lines.is_empty() {
        let links = match facts.hanging.as_slice() {
            [] => "; there is no link yet that would be guarded".to_owned(),
            [hanging] => format!(" on {}", hanging.link),
            several => format!(" on the {} links that would be guarded", several.len()),
        };
        lines.push(Line::ok(FILTERS, format!("no program and no filter of others{links}")));
    }
    lines
}

fn filters(facts: &Facts, hanging: &Hanging) -> Vec<Line> {
    let link = &hanging.link;
    let mut lines = Vec::new();
    match &hanging.foreign {
        Ok(foreign) => {
            let others: Vec<String> =
                foreign.iter().filter(|foreign| !matches!(foreign.place, Place::Xdp(_))).map(describe).collect();
            if !others.is_empty() {
                lines.push(Line::warning(
                    FILTERS,
                    format!("{link}: {}", others.join(", ")),
                    format!(
                        "they stay, and see what Bulkhead lets pass; find out whose they are (`bpftool prog show id ID`, `tc filter show dev {link} \
                         ingress`): what they redirect does not meet the programs behind them"
                    ),
                ));
            }
        }
        Err(why) => lines.push(Line::warning(FILTERS, format!("{link}: {why}"), AS_ROOT)),
    }
    match (&hanging.ingress_qdisc, &facts.kernel.tcx) {
        // With TCX no clsact is needed.
        (_, Ok(true)) | (Ok(false), _) => {}
        (Ok(true), _) => lines.push(Line::problem(
            FILTERS,
            format!(
                "{link}: it has an `ingress` qdisc, which excludes the clsact that this kernel needs for want of TCX"
            ),
            format!(
                "Linux 6.6 or later, or remove it (`tc qdisc del dev {link} ingress`; CNI's bandwidth plugin adds it)"
            ),
        )),
        (Err(why), _) => lines.push(Line::warning(FILTERS, format!("{link}: {why}"), AS_ROOT)),
    }
    lines
}

const ROUTES: &str = "routes";

fn routes(survey: &Survey) -> Vec<Line> {
    if survey.plain.is_empty() {
        return vec![Line::ok(
            ROUTES,
            "none to a network behind a gateway that goes around the overlays, the default aside",
        )];
    }
    survey.plain.iter().map(route).collect()
}

fn route(route: &PlainRoute) -> Line {
    let gateway = route.gateway.map_or("several gateways".to_owned(), |gateway| gateway.to_string());
    let found = format!("{} by {gateway} on {}", route.prefix, route.links.join(" and "));
    const PLAIN: &str =
        "such packets travel plain, and nothing on the underlay checks that their sources are not forged";
    const ENCAPSULATE: &str = "have the network encapsulate them too (flannel: backend `vxlan` without `DirectRouting`), or keep the underlay from \
         spoofing";
    match route.reach {
        Reach::Overlay => Line::warning(
            ROUTES,
            format!(
                "{found}, which an overlay binds to a VTEP: plain packets from there are dropped, as those of a forger"
            ),
            format!("remove the route, so that both ways are encapsulated (`ip route del {}`)", route.prefix),
        ),
        Reach::Node => Line::warning(
            ROUTES,
            format!("{found}, another node's VTEP (host-gw, or flannel's DirectRouting): {PLAIN}"),
            ENCAPSULATE,
        ),
        Reach::Gateway => Line::warning(
            ROUTES,
            format!("{found}, of which no overlay knows: if containers are behind it (host-gw), {PLAIN}"),
            format!("nothing, if it leads to other networks; else {ENCAPSULATE}"),
        ),
    }
}

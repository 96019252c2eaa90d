//! Rules that end.

use std::time::{SystemTime, UNIX_EPOCH};

use bulkhead_controller::show;

/// A Guard by which `guest` may call `cart` until one time, and `web` may not until another.
///
/// # Panics
/// If one of them lies before 1970 or after 2554.
#[must_use]
pub fn visit(allow: SystemTime, deny: SystemTime) -> String {
    let [allow, deny] = [allow, deny].map(|end| {
        let end = end.duration_since(UNIX_EPOCH).expect("after 1970");
        show::time(end.as_nanos().try_into().expect("before 2554"))
    });
    format!(
        "apiVersion: bulkhead/v1
kind: Guard
name: visit
priority: 10
rules:
  - allow: {{ from: shop/guest, ports: [8080], expires: {allow} }}
  - deny: {{ from: shop/web, ports: [5300/udp], expires: {deny} }}
"
    )
}

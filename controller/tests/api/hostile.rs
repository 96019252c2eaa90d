//! Clients that are slow, many, or lie: they get little, and nobody else gets less.

use std::{
    collections::BTreeSet,
    env, fs,
    io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _},
    net::{IpAddr, Shutdown, TcpStream},
    os::unix::net::UnixStream,
    process::{Child, Stdio},
    thread,
    time::Duration,
};

use bulkhead_controller::api::{identity::Appliers, problem::Problem, server::Limits, types::RevisionBody};
use bulkhead_fixtures::skip;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;

use crate::{
    client::Client,
    home::{Home, INTENT, eventually},
    node::{denied, slot},
    served::{CART, NOBODY, SOCKET, Served, enterable, home, nobody},
};

/// For a machine that hangs, not for one that is slow.
const PATIENCE: Duration = Duration::from_secs(120);

fn connect(served: &Served) -> UnixStream {
    let Client::Socket(socket) = &served.client else { unreachable!("over the socket") };
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// All that comes until the other end closes, in whatever way.
fn rest(mut stream: &UnixStream) -> String {
    let mut text = Vec::new();
    match stream.read_to_end(&mut text) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
    }
    String::from_utf8(text).unwrap()
}

/// What an agent is for goes on: files are followed, and changes are made.
#[track_caller]
fn all_is_well(home: &Home, served: &Served) {
    let before = served.status().revision.number;
    let text = fs::read_to_string(home.path("policies/shop.yaml")).unwrap();
    home.write("policies/shop.yaml", &format!("{text}# again\n"));
    eventually("the file is in force", || served.status().revision.number > before);
    served.apply(&[("cart", Some(CART))]);
    assert!(served.cart_calls_db());
    served.apply(&[("cart", None)]);
    home.write("policies/shop.yaml", INTENT);
    eventually("the file is in force", || served.policies().iter().any(|policy| policy.text == INTENT));
}

#[test]
fn half_a_head_is_waited_for_in_vain_by_nobody() {
    let home = home();
    let served = Served::new(&home);
    let halves: Vec<_> = (0..20)
        .map(|_| {
            let mut stream = connect(&served);
            stream.write_all(b"GET /v1/status HTTP/1.1\r\nhost: bulk").unwrap();
            stream
        })
        .collect();
    all_is_well(&home, &served);
    for half in &halves {
        assert_eq!(rest(half), "", "it is closed in the end");
    }
    all_is_well(&home, &served);
}

#[test]
fn who_sends_a_byte_a_second_is_answered_when_it_is_complete() {
    let home = home();
    let served = Served::new(&home);
    let body = json!({ "from": "shop/web-1", "to": "shop/db-1", "port": "5432" }).to_string();
    let mut stream = connect(&served);
    let head = "POST /v1/explain HTTP/1.1\r\nhost: bulkhead\r\nconnection: close\r\ncontent-type: application/json\r\n";
    write!(stream, "{head}content-length: {}\r\n\r\n", body.len()).unwrap();
    let (slow, fast) = body.split_at(3);
    for byte in slow.bytes() {
        stream.write_all(&[byte]).unwrap();
        thread::sleep(Duration::from_secs(1));
    }
    all_is_well(&home, &served);
    stream.write_all(fast.as_bytes()).unwrap();
    let answer = rest(&stream);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"allow\":true"), "{answer}");
}

/// A request with this body, which may be longer or shorter than its head says; then the client stops sending.
fn lie(served: &Served, head: &str, body: &[u8]) -> String {
    let mut stream = connect(served);
    let what = "POST /v1/plan HTTP/1.1\r\nhost: bulkhead\r\ncontent-type: application/json\r\n";
    write!(stream, "{what}{head}\r\n\r\n").unwrap();
    // Whoever has heard enough does not listen any more.
    let _ = stream.write_all(body);
    let _ = stream.shutdown(Shutdown::Write);
    rest(&stream)
}

#[test]
fn a_body_is_read_as_far_as_it_may_be() {
    const LONG: usize = 5 << 20;
    let home = home();
    let served = Served::new(&home);
    let long = format!("\"{}\"", "x".repeat(LONG - 2));
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    let chunked = format!("{}0\r\n\r\n", chunk(&long));
    for (head, body) in [
        (format!("content-length: {LONG}"), long.as_str()),
        ("transfer-encoding: chunked".to_owned(), chunked.as_str()),
    ] {
        let answer = lie(&served, &head, body.as_bytes());
        assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("urn:bulkhead:problem:too-large"), "{answer}");
    }
    // More is promised than comes: there is no request.
    for (head, body) in [
        ("content-length: 5242880", "{"),
        ("content-length: 100", "{\"documents\": ["),
        ("transfer-encoding: chunked", "ff\r\n{"),
    ] {
        let answer = lie(&served, head, body.as_bytes());
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    // More comes than is promised: what is promised is the request.
    for head in ["content-length: 17", "content-length: 17\r\ncontent-length: 17"] {
        let answer = lie(&served, head, format!("{{\"documents\": []}}{long}").as_bytes());
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("1 to 256"), "{answer}");
    }
    for head in
        ["content-length: 1\r\ncontent-length: 2", "content-length: -1", "content-length: 99999999999999999999999"]
    {
        let answer = lie(&served, head, b"{}");
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    assert_eq!(served.status().revision.number, 1);
    all_is_well(&home, &served);
}

/// Ends with its owner, also when a test fails.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

const CONNECTIONS: usize = 2000;

/// Opens all of them, with a request on each whose body never comes, and holds them until it is killed.
fn flood(socket: &str) -> ! {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let head =
        b"POST /v1/explain HTTP/1.1\r\nhost: bulkhead\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n";
    let connect = |_| {
        let mut stream = UnixStream::connect(socket).unwrap();
        // Who is refused at once cannot be written to.
        let _ = stream.write_all(head);
        stream.set_nonblocking(true).unwrap();
        stream
    };
    let mut held: Vec<_> = (0..CONNECTIONS).map(connect).collect();
    let mut refused = 0;
    eventually("all but those that there is room for are refused", || {
        held.retain(|stream| {
            let mut first = [0; 1];
            // A look at whether there is an answer.
            if nix::sys::socket::recv(
                std::os::fd::AsRawFd::as_raw_fd(stream),
                &mut first,
                nix::sys::socket::MsgFlags::MSG_PEEK,
            )
            .is_err()
            {
                return true;
            }
            stream.set_nonblocking(false).unwrap();
            let answer = rest(stream);
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with("HTTP/1.1 503") && head.contains("retry-after: 1"), "{answer}");
            assert!(head.contains("content-type: application/problem+json"), "{answer}");
            assert_eq!(serde_json::from_str::<Problem>(body).unwrap().status, 503);
            refused += 1;
            false
        });
        refused >= CONNECTIONS - Limits::API.common
    });
    println!("refused {refused} of {CONNECTIONS}");
    loop {
        thread::park();
    }
}

#[test]
fn of_two_thousand_connections_none_is_an_appliers() {
    const NAME: &str = "hostile::of_two_thousand_connections_none_is_an_appliers";
    /// What the child does: `flood`, else it asks once.
    const ROLE: &str = "BULKHEAD_API_ROLE";
    if let Some(socket) = env::var_os(SOCKET) {
        if env::var_os(ROLE).is_some() {
            flood(socket.to_str().unwrap());
        }
        println!("answered {}", Client::Socket(socket.into()).get("/v1/status").status);
        return;
    }
    if !skip::require("root, to be somebody else", nix::unistd::geteuid().is_root())
        || !skip::require(
            "2,500 file descriptors (`ulimit -Hn`)",
            getrlimit(Resource::RLIMIT_NOFILE).is_ok_and(|(_, most)| most >= 2500),
        )
    {
        return;
    }
    let home = home();
    enterable(&home);
    let served = Served::with(&home, home.agent(), Some(NOBODY), Appliers::default());
    let Client::Socket(socket) = &served.client else { unreachable!("over the socket") };
    let ask = || {
        let asked = nobody(NAME, socket).output().unwrap();
        let said = String::from_utf8_lossy(&asked.stdout).into_owned();
        let status = said.split_once("answered ").and_then(|(_, status)| status.get(..3)?.parse::<u16>().ok());
        status.unwrap_or_else(|| panic!("{said}{}", String::from_utf8_lossy(&asked.stderr)))
    };
    assert_eq!(ask(), 200);

    let mut child = nobody(NAME, socket);
    let mut flood = Killed(child.env(ROLE, "flood").stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(flood.0.stdout.take().unwrap()).lines().map_while(Result::ok);
    let refused = lines.find(|line| line.contains("refused "));
    assert!(refused.is_some(), "the flood stands");
    // Whoever may apply gets through, and the agent is at its work.
    all_is_well(&home, &served);
    drop(flood);
    eventually("others are answered again", || ask() == 200);
    all_is_well(&home, &served);
}

#[test]
fn who_follows_and_does_not_read_holds_up_nobody() {
    let home = home();
    let served = Served::new(&home);
    let slot = slot(&served, "web-1");
    let seen = |packets| (1..=1000).for_each(|port| denied(&home.store, slot, port, packets));
    seen(1);
    let streams: Vec<_> = (0..40)
        .map(|_| {
            let mut stream = connect(&served);
            stream.write_all(b"GET /v1/observations/stream HTTP/1.1\r\nhost: bulkhead\r\n\r\n").unwrap();
            let mut status = [0; 12];
            stream.read_exact(&mut status).unwrap();
            (String::from_utf8_lossy(&status[9..]).into_owned(), stream)
        })
        .collect();
    let (follow, refused): (Vec<_>, Vec<_>) = streams.iter().partition(|(status, _)| status == "200");
    assert_eq!((follow.len(), refused.len()), (16, 24));
    assert!(refused.iter().all(|(status, _)| status == "429"));
    served.client.send("GET", "/v1/observations/stream", &[], "").problem(429);
    for packets in 2..5 {
        seen(packets);
        all_is_well(&home, &served);
    }
    drop(streams);
    eventually("somebody else may follow", || {
        let mut stream = connect(&served);
        stream.write_all(b"GET /v1/observations/stream HTTP/1.1\r\nhost: bulkhead\r\n\r\n").unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).unwrap();
        status.ends_with(b"200")
    });
}

/// A connection to the open address: of the node itself, or as from elsewhere.
fn open(port: u16, is_own: bool) -> TcpStream {
    // Who calls another address of lo calls from the first one.
    let address = if is_own { [127, 0, 0, 1] } else { [127, 0, 0, 2] };
    let stream = TcpStream::connect((IpAddr::from(address), port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The answer of the open address, empty where it closes the connection without one.
fn read_open(port: u16, is_own: bool, path: &str) -> String {
    let mut stream = open(port, is_own);
    // Who is refused at once cannot be written to, and may not hear why.
    let _ = write!(stream, "GET {path} HTTP/1.1\r\nhost: bulkhead\r\n\r\n");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

/// Whoever reaches the open address takes few descriptors and for a while, and probes of the node get through.
#[test]
fn who_only_connects_to_the_open_address_shuts_out_neither_probes_nor_others_for_ever() {
    const IDLE: usize = 200;
    let home = home();
    let served = Served::new(&home);
    let mut idle: Vec<TcpStream> = (0..IDLE).map(|_| open(served.open, false)).collect();
    let mut refused = 0;
    idle.retain_mut(|stream| {
        stream.set_nonblocking(true).unwrap();
        // Those that have a place wait for a request.
        let waits = stream.peek(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
        stream.set_nonblocking(false).unwrap();
        waits || {
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("too many connections"), "{answer}");
            refused += 1;
            false
        }
    });
    println!("{refused} of {IDLE} were refused at first");
    for path in ["/healthz", "/readyz", "/metrics"] {
        let answer = read_open(served.open, true, path);
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    }
    all_is_well(&home, &served);
    // Of those that had a place none has one for ever.
    for stream in &mut idle {
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 503"), "{answer}");
        refused += usize::from(!answer.is_empty());
    }
    assert!(refused > 0, "there is room for {}", Limits::OPEN.common);
    eventually("others are answered again", || read_open(served.open, false, "/metrics").starts_with("HTTP/1.1 200"));
}

/// Scrapes and readers without end: whoever probes or applies waits for the agent alone.
#[test]
fn those_who_read_take_no_places_from_those_who_probe_and_apply() {
    let home = home();
    let served = Served::new(&home);
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let handle = served.handle.clone();
    let busy = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(handle.ask(move |_| wait.recv())).is_err()
    });
    let reader = served.somebody(&home, "reader", 4242, false);
    let applier = served.somebody(&home, "applier", 4243, true);
    let port = served.open;
    eventually("it is busy", || reader.get("/v1/status").status == 503);
    let scrapes: Vec<_> =
        (0..Limits::OPEN.common).map(|_| thread::spawn(move || read_open(port, false, "/metrics"))).collect();
    let read = |_| {
        let reader = reader.clone();
        thread::spawn(move || reader.get("/v1/status").problem(503).detail)
    };
    let readers: Vec<_> = (0..100).map(read).collect();
    let details: Vec<_> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
    assert!(details.iter().any(|detail| detail.starts_with("too many requests")), "{details:?}");
    let confirms = thread::spawn(move || applier.post("/v1/revisions/1/confirm", &json!({})).problem(409));
    let probes = thread::spawn(move || read_open(port, true, "/healthz"));
    // Without a place they would be refused by then.
    thread::sleep(Duration::from_millis(500));
    go.send(()).unwrap();
    confirms.join().unwrap();
    let probed = probes.join().unwrap();
    assert!(probed.starts_with("HTTP/1.1 200") || probed.contains("the agent is busy"), "{probed}");
    scrapes.into_iter().for_each(|scrape| drop(scrape.join().unwrap()));
    busy.join().unwrap();
    all_is_well(&home, &served);
}

/// The agent has other work: questions wait, some are refused, and none is lost.
#[test]
fn more_questions_than_may_wait_are_refused() {
    let home = home();
    let served = Served::new(&home);
    let reader = served.somebody(&home, "reader", 4242, false);
    let ask = |_| {
        let client = reader.clone();
        thread::spawn(move || client.get("/v1/status").problem(503).detail)
    };
    // It answers nobody until it is let go.
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let handle = served.handle.clone();
    let busy = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(handle.ask(move |_| wait.recv())).is_err()
    });
    eventually("it is busy", || reader.get("/v1/status").status == 503);
    let asked: Vec<_> = (0..100).map(ask).collect();
    let details: BTreeSet<_> = asked.into_iter().map(|asked| asked.join().unwrap()).collect();
    let expected = ["the agent is busy; ask again", "too many requests wait for the agent; ask again"];
    assert!(details.iter().eq(expected.iter()), "{details:?}");
    go.send(()).unwrap();
    busy.join().unwrap();
    eventually("others are answered again", || reader.get("/v1/status").status == 200);
    all_is_well(&home, &served);
    let last: Vec<RevisionBody> = served.client.get("/v1/revisions?limit=1").ok();
    assert_eq!(last[0].condition, "in force");
}

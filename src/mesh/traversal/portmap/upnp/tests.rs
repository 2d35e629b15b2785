//! Against small devices on loopback, honest ones and others. No test waits for a device that
//! answers; those that do not get 300 ms.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

use super::super::open_at;
use super::*;
use crate::addresses::system_addresses;

const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
const PORT: u16 = 4460;
const SCHEMA: &str = "\
<scpd><actionList>
<action><name>AddPortMapping</name><argumentList>
<argument><name>NewExternalPort</name><direction>in</direction></argument>
<argument><name>NewLeaseDuration</name><direction>in</direction></argument>
</argumentList></action>
<action><name>AddAnyPortMapping</name><argumentList>
<argument><name>NewExternalPort</name><direction>in</direction></argument>
<argument><name>NewLeaseDuration</name><direction>in</direction></argument>
</argumentList></action>
<action><name>DeletePortMapping</name><argumentList>
<argument><name>NewExternalPort</name><direction>in</direction></argument>
</argumentList></action>
</actionList></scpd>";

/// How a device behaves.
#[derive(Debug, Clone)]
struct Manners {
    /// What it says that it is outside.
    outside: &'static str,
    /// It keeps ports for ever, or not at all.
    permanent_only: bool,
    /// Another machine holds the port that is asked for.
    taken: bool,
    /// The port that it opens where any will do.
    any: u16,
    /// Where it says that its description is, if not here.
    described_at: Option<&'static str>,
    /// Where it says that it is controlled, if not here.
    controlled_at: &'static str,
    /// A request for this gets no answer.
    silent_at: &'static str,
    /// A request for this gets an answer without end.
    endless_at: &'static str,
}

impl Default for Manners {
    fn default() -> Self {
        Self {
            outside: "203.0.113.5",
            permanent_only: false,
            taken: false,
            any: 50_000,
            described_at: None,
            controlled_at: "/control",
            silent_at: "nothing",
            endless_at: "nothing",
        }
    }
}

/// A device that answers searches, on loopback.
struct Device {
    search: SocketAddr,
    /// The open ports with their leases.
    ports: Arc<Mutex<BTreeMap<u16, u32>>>,
    _tasks: JoinSet<()>,
}

impl Device {
    async fn start(manners: Manners) -> Self {
        Self::start_at(LOCALHOST.into(), manners).await
    }

    async fn start_at(ip: IpAddr, manners: Manners) -> Self {
        let udp = UdpSocket::bind((ip, 0)).await.unwrap();
        let tcp = TcpListener::bind((ip, 0)).await.unwrap();
        let search = udp.local_addr().unwrap();
        let here = format!("http://{}/description", tcp.local_addr().unwrap());
        let location = manners.described_at.unwrap_or(&here).to_owned();
        let ports = Arc::new(Mutex::new(BTreeMap::new()));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut buffer = [0; 1500];
            while let Ok((_, from)) = udp.recv_from(&mut buffer).await {
                let answer = format!("HTTP/1.1 200 OK\r\nLOCATION: {location}\r\n\r\n");
                udp.send_to(answer.as_bytes(), from).await.unwrap();
            }
        });
        let open = ports.clone();
        tasks.spawn(async move {
            let mut requests = JoinSet::new();
            while let Ok((stream, _)) = tcp.accept().await {
                requests.spawn(serve(stream, manners.clone(), open.clone()));
            }
        });
        Self {
            search,
            ports,
            _tasks: tasks,
        }
    }

    /// A search for it, at what is the machine's gateway.
    fn search(&self) -> Search {
        Search {
            spot: Spot {
                gateway: LOCALHOST,
                local: LOCALHOST,
            },
            at: vec![(self.search, Duration::from_secs(10))],
            patience: Duration::from_secs(10),
        }
    }

    async fn open(&self) -> Result<(Upnp, Opened), String> {
        Upnp::open(&self.search(), port()).await
    }

    /// Why nothing is opened, which leaves nothing behind.
    #[track_caller]
    fn refused(&self, opened: Result<(Upnp, Opened), String>) -> String {
        let why = opened.unwrap_err();
        assert_eq!(self.ports(), [], "{why}");
        why
    }

    fn ports(&self) -> Vec<(u16, u32)> {
        let ports = self.ports.lock().unwrap();
        ports.iter().map(|(port, lease)| (*port, *lease)).collect()
    }
}

fn port() -> NonZeroU16 {
    NonZeroU16::new(PORT).unwrap()
}

/// One request of HTTP.
async fn serve(mut stream: TcpStream, manners: Manners, ports: Arc<Mutex<BTreeMap<u16, u32>>>) {
    let Some(request) = read(&mut stream).await else {
        return;
    };
    if request.contains(manners.silent_at) {
        return std::future::pending().await;
    }
    if request.contains(manners.endless_at) {
        let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let mut alive = stream.write_all(head).await.is_ok();
        while alive {
            let chunk = format!("1000\r\n{}\r\n", "<a>".repeat(0x1000 / 3) + "x");
            alive = stream.write_all(chunk.as_bytes()).await.is_ok();
        }
        return;
    }
    let body = if request.starts_with("GET /description") {
        format!(
            "<root><device><serviceList><service>\
             <serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>\
             <SCPDURL>/schema</SCPDURL><controlURL>{}</controlURL>\
             </service></serviceList></device></root>",
            manners.controlled_at
        )
    } else if request.starts_with("GET /schema") {
        SCHEMA.to_owned()
    } else {
        control(&request, &manners, &mut ports.lock().unwrap())
    };
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    // Who asked may have gone.
    let _ = stream.write_all(answer.as_bytes()).await;
}

async fn read(stream: &mut TcpStream) -> Option<String> {
    let mut text = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        let len = stream.read(&mut buffer).await.ok()?;
        text.extend_from_slice(&buffer[..len]);
        let text = std::str::from_utf8(&text).ok()?;
        let whole = text.starts_with("GET") && text.ends_with("\r\n\r\n");
        if whole || text.ends_with("Envelope>") {
            return Some(text.to_owned());
        }
        if len == 0 {
            return None;
        }
    }
}

fn control(request: &str, manners: &Manners, ports: &mut BTreeMap<u16, u32>) -> String {
    let argument = |name: &str| -> u32 {
        let text = request.split_once(&format!("<{name}>")).unwrap().1;
        text.split_once('<').unwrap().0.parse().unwrap()
    };
    let fault = |code: u16| {
        soap(&format!(
            "<s:Fault><detail><UPnPError><errorCode>{code}</errorCode>\
             <errorDescription>no</errorDescription></UPnPError></detail></s:Fault>"
        ))
    };
    let opens = request.contains("<u:AddPortMapping") || request.contains("<u:AddAnyPortMapping");
    if opens && manners.permanent_only && argument("NewLeaseDuration") != 0 {
        return fault(725);
    }
    if request.contains("GetExternalIPAddress") {
        let ip = manners.outside;
        soap(&format!(
            "<u:GetExternalIPAddressResponse><NewExternalIPAddress>{ip}</NewExternalIPAddress>\
             </u:GetExternalIPAddressResponse>"
        ))
    } else if request.contains("<u:AddPortMapping") {
        if manners.taken {
            return fault(718);
        }
        let outside = u16::try_from(argument("NewExternalPort")).unwrap();
        ports.insert(outside, argument("NewLeaseDuration"));
        soap("<u:AddPortMappingResponse/>")
    } else if request.contains("<u:AddAnyPortMapping") {
        ports.insert(manners.any, argument("NewLeaseDuration"));
        soap(&format!(
            "<u:AddAnyPortMappingResponse><NewReservedPort>{}</NewReservedPort>\
             </u:AddAnyPortMappingResponse>",
            manners.any
        ))
    } else {
        let outside = u16::try_from(argument("NewExternalPort")).unwrap();
        match ports.remove(&outside) {
            Some(_) => soap("<u:DeletePortMappingResponse/>"),
            None => fault(714),
        }
    }
}

fn soap(body: &str) -> String {
    format!("<s:Envelope xmlns:s=\"s\" xmlns:u=\"u\"><s:Body>{body}</s:Body></s:Envelope>")
}

#[tokio::test]
async fn a_port_is_opened_renewed_and_closed() {
    let device = Device::start(Manners::default()).await;
    let (mut upnp, opened) = device.open().await.unwrap();
    assert_eq!(opened.external, "203.0.113.5:4460".parse().unwrap());
    assert_eq!(device.ports(), [(PORT, 3600)]);
    // The router has been restarted.
    device.ports.lock().unwrap().clear();
    assert_eq!(upnp.renew().await, Ok(opened));
    assert_eq!(device.ports(), [(PORT, 3600)]);
    assert_eq!(upnp.close().await, Ok(()));
    assert_eq!(device.ports(), []);
}

#[tokio::test]
async fn a_router_that_keeps_ports_for_ever_is_asked_to_and_gets_its_port_back() {
    for (taken, outside) in [(false, PORT), (true, 50_000)] {
        let device = Device::start(Manners {
            permanent_only: true,
            taken,
            ..Manners::default()
        })
        .await;
        let (mut upnp, opened) = device.open().await.unwrap();
        assert_eq!(device.ports(), [(outside, 0)]);
        assert_eq!(opened.external.port(), outside);
        // Now and then it is made sure that the port is still there.
        assert_eq!(opened.lease, LEASE);
        if !taken {
            device.ports.lock().unwrap().clear();
            assert_eq!(upnp.renew().await, Ok(opened));
            assert_eq!(device.ports(), [(outside, 0)]);
        }
        assert_eq!(upnp.close().await, Ok(()));
        assert_eq!(device.ports(), []);
    }
}

#[tokio::test]
async fn where_the_port_is_taken_another_one_is_used_whichever_it_is() {
    let device = Device::start(Manners {
        taken: true,
        any: 61_234,
        ..Manners::default()
    })
    .await;
    let (upnp, opened) = device.open().await.unwrap();
    assert_eq!(opened.external, "203.0.113.5:61234".parse().unwrap());
    assert_eq!(device.ports(), [(61_234, 3600)]);
    assert_eq!(upnp.close().await, Ok(()));
    assert_eq!(device.ports(), []);
}

#[tokio::test]
async fn port_0_is_none() {
    let device = Device::start(Manners {
        taken: true,
        any: 0,
        ..Manners::default()
    })
    .await;
    let why = device.open().await.unwrap_err();
    assert!(why.contains("port 0"), "{why}");
}

#[tokio::test]
async fn nothing_is_opened_where_nobody_can_be_outside() {
    for outside in ["0.0.0.0", "224.0.0.1", "255.255.255.255"] {
        let device = Device::start(Manners {
            outside,
            ..Manners::default()
        })
        .await;
        let why = device.refused(device.open().await);
        assert!(
            why.contains(outside) && why.contains("nobody can be"),
            "{why}"
        );
    }
    for outside in ["", "here", "::ffff:0.0.0.0.0"] {
        let device = Device::start(Manners {
            outside,
            ..Manners::default()
        })
        .await;
        device.refused(device.open().await);
    }
}

#[tokio::test]
async fn who_names_another_host_is_not_asked() {
    for lies in [
        Manners {
            described_at: Some("http://198.51.100.1/description"),
            ..Manners::default()
        },
        Manners {
            described_at: Some("http://router.example/description"),
            ..Manners::default()
        },
        Manners {
            controlled_at: "http://198.51.100.1/control",
            ..Manners::default()
        },
    ] {
        let device = Device::start(lies).await;
        let opened = Upnp::open(&short_of(&device.search()), port()).await;
        let why = device.refused(opened);
        assert!(why.contains("no answer that a router would give"), "{why}");
    }
}

#[tokio::test]
async fn a_device_that_is_not_the_gateway_is_not_asked() {
    // On an address of the network, if this machine has one: on loopback, nobody is listened to but
    // a gateway that is there itself.
    let [here, ..] = system_addresses((Ipv4Addr::UNSPECIFIED, 0).into())[..] else {
        panic!("there is always one");
    };
    let device = Device::start_at(here.ip(), Manners::default()).await;
    let mut search = short_of(&device.search());
    search.spot.local = Ipv4Addr::UNSPECIFIED;
    search.spot.gateway = Ipv4Addr::new(127, 0, 0, 9);
    let why = device.refused(Upnp::open(&search, port()).await);
    let expected = if here.ip().is_loopback() {
        "no answer that a router would give".to_owned()
    } else {
        format!("{} answers, which is not this machine's router", here.ip())
    };
    assert!(why.contains(&expected), "{why}");
}

/// The same by whom does not wait long.
fn short_of(search: &Search) -> Search {
    let short = Duration::from_millis(300);
    Search {
        at: search.at.iter().map(|(at, _)| (*at, short)).collect(),
        patience: short,
        ..search.clone()
    }
}

#[tokio::test]
async fn a_device_that_does_not_answer_is_not_waited_for() {
    for silent_at in [
        "GET /description",
        "GET /schema",
        "GetExternalIPAddress",
        "PortMapping",
    ] {
        let device = Device::start(Manners {
            silent_at,
            ..Manners::default()
        })
        .await;
        let why = device.refused(Upnp::open(&short_of(&device.search()), port()).await);
        assert!(why.contains("answer"), "{silent_at}: {why}");
    }
}

#[tokio::test]
async fn an_answer_without_end_is_not_read_to_its_end() {
    for endless_at in [
        "GET /description",
        "GET /schema",
        "GetExternalIPAddress",
        "PortMapping",
    ] {
        let device = Device::start(Manners {
            endless_at,
            ..Manners::default()
        })
        .await;
        let opened = Upnp::open(&short_of(&device.search()), port()).await;
        let why = device.refused(opened);
        assert!(why.len() < 500, "{endless_at}: {why}");
    }
}

#[tokio::test]
async fn people_learn_what_each_protocol_came_to() {
    // Neither PCP nor NAT-PMP is spoken here: nothing listens at their port.
    let device = Device::start(Manners {
        outside: "0.0.0.0",
        ..Manners::default()
    })
    .await;
    let why = open_at(port(), &device.search()).await.unwrap_err();
    for part in [
        "router 127.0.0.1 opens no port",
        "PCP:",
        "NAT-PMP:",
        "UPnP: the router says that it is 0.0.0.0 outside",
        "forward UDP port 4460 by hand",
    ] {
        assert!(why.contains(part), "{part}: {why}");
    }
}

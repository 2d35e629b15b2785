//! Plain UDP over simulated sockets.

use std::{future::poll_fn, io::IoSliceMut, net::SocketAddr, sync::Arc, time::Duration};

use quinn::{
    AsyncUdpSocket,
    udp::{RecvMeta, Transmit},
};
use tokio::time::timeout;

use crate::Host;

/// A socket of a host.
#[derive(Debug, Clone)]
pub(crate) struct Udp(Arc<dyn AsyncUdpSocket>);

impl Udp {
    pub(crate) fn bind(host: &Host, port: u16) -> Self {
        Self(host.bind(port).unwrap())
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    pub(crate) fn send(&self, to: SocketAddr, contents: &[u8]) {
        let transmit = Transmit {
            destination: to,
            ecn: None,
            contents,
            segment_size: None,
            src_ip: None,
        };
        self.0.try_send(&transmit).unwrap();
    }

    pub(crate) async fn receive(&self) -> (SocketAddr, Vec<u8>) {
        poll_fn(|cx| {
            let mut buffer = [0; 2048];
            let mut meta = [RecvMeta::default()];
            let mut slices = [IoSliceMut::new(&mut buffer)];
            let received = self.0.poll_recv(cx, &mut slices, &mut meta);
            received.map(|count| {
                assert_eq!(count.unwrap(), 1);
                (meta[0].addr, buffer[..meta[0].len].to_vec())
            })
        })
        .await
    }

    /// What has arrived by now or will within two seconds.
    pub(crate) async fn soon(&self) -> Option<(SocketAddr, Vec<u8>)> {
        timeout(Duration::from_secs(2), self.receive()).await.ok()
    }

    /// Sends to `to` and gives the address that it was seen from, if it arrives.
    pub(crate) async fn reach(&self, to: SocketAddr, at: &Udp) -> Option<SocketAddr> {
        self.send(to, b"reach");
        at.soon().await.map(|(from, _)| from)
    }

    /// Throws away what is here or arrives within a second.
    pub(crate) async fn drain(&self) {
        let all = async {
            loop {
                self.receive().await;
            }
        };
        let _: Result<(), _> = timeout(Duration::from_secs(1), all).await;
    }
}

//! TCP proxies in front of the servers, and what becomes of connections through them.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

/// Pieces under way in one direction of a connection; more wait at their sender.
const UNDER_WAY: usize = 256;

/// How it goes with all connections.
#[derive(Clone, Copy, Debug, Default)]
struct Weather {
    /// How often everything was cut.
    cuts: u64,
    /// Nothing passes, and nobody is told.
    is_blocked: bool,
    /// How much longer every piece takes.
    delay: Duration,
}

/// Proxies, one for each server, under one weather.
#[derive(Debug)]
pub(crate) struct Proxies {
    addresses: Vec<SocketAddr>,
    weather: watch::Sender<Weather>,
}

impl Proxies {
    /// Listens on a port for each of these.
    ///
    /// # Errors
    /// When there is no port to be had.
    pub(crate) async fn start(to: &[SocketAddr]) -> std::io::Result<Self> {
        let (weather, _) = watch::channel(Weather::default());
        let mut addresses = Vec::new();
        for &to in to {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            addresses.push(listener.local_addr()?);
            Handle::current().spawn(accept(listener, to, weather.subscribe()));
        }
        Ok(Self { addresses, weather })
    }

    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Breaks every connection, in the middle of whatever passes.
    pub(crate) fn cut(&self) {
        self.weather.send_modify(|weather| weather.cuts += 1);
    }

    pub(crate) fn block(&self, is_blocked: bool) {
        self.weather
            .send_modify(|weather| weather.is_blocked = is_blocked);
    }

    pub(crate) fn slow(&self, delay: Duration) {
        self.weather.send_modify(|weather| weather.delay = delay);
    }
}

async fn accept(listener: TcpListener, to: SocketAddr, weather: watch::Receiver<Weather>) {
    while let Ok((client, _)) = listener.accept().await {
        tokio::spawn(connection(client, to, weather.clone()));
    }
}

async fn connection(client: TcpStream, to: SocketAddr, weather: watch::Receiver<Weather>) {
    let cuts = weather.borrow().cuts;
    let both = async {
        if weather
            .clone()
            .wait_for(|now| !now.is_blocked)
            .await
            .is_err()
        {
            return;
        }
        let Ok(server) = TcpStream::connect(to).await else {
            return;
        };
        let nodelay = client.set_nodelay(true).and(server.set_nodelay(true));
        if nodelay.is_err() {
            return;
        }
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        tokio::select! {
            () = carry(from_client, to_server, weather.clone()) => {}
            () = carry(from_server, to_client, weather.clone()) => {}
        }
    };
    let mut seen = weather.clone();
    tokio::select! {
        () = both => {}
        _ = seen.wait_for(|now| now.cuts != cuts) => {}
    }
}

/// Carries one direction until either end closes.
async fn carry(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut weather: watch::Receiver<Weather>,
) {
    let (pieces, mut under_way) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    let reading = weather.clone();
    let read = async move {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            let due = Instant::now() + reading.borrow().delay;
            if pieces.send((due, buffer[..length].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let write = async move {
        while let Some((due, piece)) = under_way.recv().await {
            sleep_until(due).await;
            if weather.wait_for(|now| !now.is_blocked).await.is_err()
                || to.write_all(&piece).await.is_err()
            {
                return;
            }
        }
    };
    tokio::join!(read, write);
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = client.split();
                    tokio::io::copy(&mut from, &mut to).await
                });
            }
        });
        address
    }

    async fn says(client: &mut TcpStream, byte: u8) -> std::io::Result<u8> {
        client.write_u8(byte).await?;
        client.read_u8().await
    }

    #[tokio::test]
    async fn what_passes_is_delayed_held_back_and_cut() {
        let proxies = Proxies::start(&[echo().await]).await.unwrap();
        let mut client = TcpStream::connect(proxies.addresses()[0]).await.unwrap();
        assert_eq!(says(&mut client, 1).await.unwrap(), 1);
        proxies.slow(Duration::from_millis(50));
        let began = Instant::now();
        assert_eq!(says(&mut client, 2).await.unwrap(), 2);
        assert!(began.elapsed() >= Duration::from_millis(100));
        proxies.slow(Duration::ZERO);
        proxies.block(true);
        client.write_u8(3).await.unwrap();
        let held = tokio::time::timeout(Duration::from_millis(100), client.read_u8()).await;
        assert!(held.is_err(), "{held:?}");
        proxies.block(false);
        assert_eq!(client.read_u8().await.unwrap(), 3);
        proxies.cut();
        assert!(client.read_u8().await.is_err());
        let mut client = TcpStream::connect(proxies.addresses()[0]).await.unwrap();
        assert_eq!(says(&mut client, 4).await.unwrap(), 4);
    }
}

//! The owner of a directory with its door: what `trunkline up` is, for those who attach.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use tokio::net::TcpListener;
use tokio::sync::oneshot;
use trunkline::{Bus, Error, ErrorKind};
use trunkline_gateway::{Door, DoorConfig, serve};

use crate::client::{Order, Orders};

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Owner {
    /// The directory of the log.
    #[arg(long)]
    pub(crate) data: PathBuf,
    /// Where its door listens; port 0 takes a free one.
    #[arg(long)]
    pub(crate) listen: SocketAddr,
}

/// Serves until it is told to end. Its first line on standard output is where it listens.
///
/// # Errors
/// When it cannot listen.
pub(crate) async fn run(owner: Owner) -> trunkline::Result<ExitCode> {
    let failed = |error: std::io::Error| {
        Error::new(ErrorKind::Internal, "the owner cannot listen").caused_by(error)
    };
    let mut orders = Orders::listen().map_err(failed)?;
    let listener = TcpListener::bind(owner.listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let bus = Bus::connect(format!("file:{}", owner.data.display())).await?;
    let door = Door::new(bus.clone(), DoorConfig::default())?;
    announce(address);
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = serve(listener, door, async move {
        // It is dropped, not sent to.
        let _ = stopped.await;
    });
    tokio::pin!(serving);
    tokio::select! {
        served = &mut serving => served?,
        () = end(&mut orders) => {
            drop(stop);
            serving.await?;
        }
    }
    bus.close().await?;
    Ok(ExitCode::SUCCESS)
}

async fn end(orders: &mut Orders) {
    while let Order::Command(_) = orders.next().await {}
}

#[expect(clippy::print_stdout, reason = "the runner reads where it listens")]
fn announce(address: SocketAddr) {
    println!("{address}");
}

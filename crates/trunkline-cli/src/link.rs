//! Whether the bus can be reached, told to people while a command waits for it.

use tokio::sync::watch;
use trunkline::{Bus, Link};

/// What changed about the connection.
pub(crate) struct LinkNews {
    link: watch::Receiver<Link>,
    /// That it is down was told, so that it is back is worth telling.
    told_down: bool,
}

impl LinkNews {
    pub(crate) fn of(bus: &Bus) -> Self {
        Self {
            link: bus.link(),
            told_down: false,
        }
    }

    /// Waits for the next thing to tell. Dropping the future loses nothing. A bus that was closed
    /// is not told here: whoever waits for it sees that for itself.
    pub(crate) async fn next(&mut self) -> String {
        loop {
            if self.link.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            let link = self.link.borrow_and_update().clone();
            match link {
                // The reason changes with every attempt; the first is the one to know.
                Link::Disconnected { reason, .. } if !self.told_down => {
                    self.told_down = true;
                    return format!("note: disconnected: {reason}; waiting for the bus");
                }
                Link::Connected if self.told_down => {
                    self.told_down = false;
                    return "note: connected again".to_owned();
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use trunkline::Timestamp;

    use super::*;

    #[tokio::test]
    async fn an_outage_is_told_once_and_so_is_its_end() {
        let (sender, link) = watch::channel(Link::Connected);
        let mut news = LinkNews {
            link,
            told_down: false,
        };
        let down = |reason: &str| Link::Disconnected {
            since: Timestamp::from_nanos(0),
            reason: reason.to_owned(),
        };
        sender.send_replace(Link::Connected);
        let told = async {
            tokio::task::yield_now().await;
            sender.send_replace(down("cut"));
        };
        let (first, ()) = tokio::join!(news.next(), told);
        assert_eq!(first, "note: disconnected: cut; waiting for the bus");
        let told = async {
            sender.send_replace(down("refused"));
            tokio::task::yield_now().await;
            sender.send_replace(Link::Connected);
        };
        let (second, ()) = tokio::join!(news.next(), told);
        assert_eq!(second, "note: connected again");
    }
}

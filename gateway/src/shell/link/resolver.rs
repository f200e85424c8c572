//! Host names of dispatchers, resolved on a thread of their own: a slow name server must not stop a shard.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::mpsc::{SyncSender, sync_channel};

/// Questions waiting at most; links ask again after their backoff.
const QUESTIONS_MAX: usize = 256;

/// Addresses of a name, or why there are none.
pub type Answer = Result<Vec<SocketAddr>, String>;

struct Question {
    address: String,
    answer: Box<dyn FnOnce(Answer) + Send>,
}

/// A handle to the thread; it ends with the last handle.
#[derive(Clone)]
pub struct Resolver {
    questions: SyncSender<Question>,
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Resolver")
    }
}

impl Resolver {
    /// Starts the thread.
    ///
    /// # Errors
    /// Out of threads.
    pub fn start() -> io::Result<Self> {
        let (questions, receiver) = sync_channel::<Question>(QUESTIONS_MAX);
        std::thread::Builder::new().name("resolver".to_owned()).spawn(move || {
            for question in receiver {
                let found = question.address.to_socket_addrs().map_err(|error| error.to_string());
                let answer = found.map(|addresses| addresses.collect::<Vec<_>>());
                (question.answer)(answer.and_then(|found| {
                    if found.is_empty() { Err("the name has no address".to_owned()) } else { Ok(found) }
                }));
            }
        })?;
        Ok(Resolver { questions })
    }

    /// Asks for `host:port`; `answer` is called on the resolver's thread. False: too many questions wait.
    pub fn ask(&self, address: &str, answer: impl FnOnce(Answer) + Send + 'static) -> bool {
        self.questions.try_send(Question { address: address.to_owned(), answer: Box::new(answer) }).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_nonsense_are_answered() {
        let resolver = Resolver::start().unwrap();
        let ask = |address: &str| {
            let (sender, receiver) = std::sync::mpsc::channel();
            assert!(resolver.ask(address, move |answer| sender.send(answer).unwrap()));
            receiver.recv_timeout(std::time::Duration::from_secs(20)).unwrap()
        };
        assert_eq!(ask("127.0.0.1:9").unwrap(), ["127.0.0.1:9".parse().unwrap()]);
        assert!(ask("localhost:9").unwrap().iter().all(|address| address.ip().is_loopback()));
        assert!(ask("no port").is_err());
    }
}

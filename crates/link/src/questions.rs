//! Questions that wait for their host to come and fetch them.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use async_trait::async_trait;
use base::{Error, HostId, Result, ServerId};
use bytes::Bytes;
use contract::services::HostAccess;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::{Answer, Ask, Question, bytes_of};

/// How long an asker waits for a host.
const PATIENCE: Duration = Duration::from_secs(10);
/// Questions that may wait for one host; more are refused, so that a dead host costs nothing.
const WAITING: usize = 64;

#[derive(Default)]
struct State {
    next: u64,
    waiting: BTreeMap<HostId, VecDeque<Question>>,
    asked: BTreeMap<u64, (HostId, oneshot::Sender<Answer>)>,
}

/// The queue of questions, by host.
#[derive(Default)]
pub struct Questions {
    state: Mutex<State>,
    changed: Notify,
}

impl Questions {
    /// The next question for `host`; waits at most `patience` for one.
    pub async fn next(&self, host: HostId, patience: Duration) -> Option<Question> {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(question) = self.state.lock().waiting.get_mut(&host).and_then(VecDeque::pop_front) {
                return Some(question);
            }
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                return None;
            }
        }
    }

    /// Takes an answer; one that nobody waits for, or from another host than was asked, is dropped.
    pub fn answer(&self, host: HostId, answer: Answer) {
        let mut state = self.state.lock();
        if state.asked.get(&answer.id).is_some_and(|(asked, _)| *asked == host)
            && let Some((_, asker)) = state.asked.remove(&answer.id)
        {
            let _ = asker.send(answer);
        }
    }

    async fn ask(&self, host: HostId, what: Ask) -> Result<String> {
        let unreachable = || Error::unavailable(format!("Host {host} does not answer."));
        let (sender, receiver) = oneshot::channel();
        let id = {
            let mut state = self.state.lock();
            let id = state.next;
            state.next += 1;
            let waiting = state.waiting.entry(host).or_default();
            if waiting.len() >= WAITING {
                return Err(unreachable());
            }
            waiting.push_back(Question { id, what });
            state.asked.insert(id, (host, sender));
            id
        };
        self.changed.notify_waiters();
        let answer = tokio::time::timeout(PATIENCE, receiver).await;
        let mut state = self.state.lock();
        state.asked.remove(&id);
        if let Some(waiting) = state.waiting.get_mut(&host) {
            waiting.retain(|q| q.id != id);
        }
        match answer {
            Ok(Ok(answer)) => answer.result.map_err(Error::from),
            _ => Err(unreachable()),
        }
    }
}

#[async_trait]
impl HostAccess for Questions {
    async fn console_log(&self, host: HostId, server: ServerId, length: Option<usize>) -> Result<String> {
        self.ask(host, Ask::ConsoleLog { server, length }).await
    }

    async fn read_disk(&self, host: HostId, server: ServerId, disk: &str, offset: u64) -> Result<Bytes> {
        bytes_of(&self.ask(host, Ask::ReadDisk { server, disk: disk.to_owned(), offset }).await?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use base::Entropy;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_question_finds_its_answer_and_only_from_its_host() {
        let entropy = Entropy::seeded(1);
        let (host, other) = (HostId::random(&entropy), HostId::random(&entropy));
        let server = ServerId::random(&entropy);
        let questions = Arc::new(Questions::default());
        let asker = tokio::spawn({
            let questions = questions.clone();
            async move { questions.console_log(host, server, Some(3)).await }
        });
        let question = questions.next(host, Duration::from_secs(5)).await.unwrap();
        questions.answer(other, Answer { id: question.id, result: Ok("forged".into()) });
        questions.answer(host, Answer { id: question.id, result: Ok("log".into()) });
        assert_eq!(asker.await.unwrap().unwrap(), "log");
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_host_is_told_after_a_while() {
        let entropy = Entropy::seeded(1);
        let questions = Questions::default();
        let error = questions
            .console_log(HostId::random(&entropy), ServerId::random(&entropy), None)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), base::Kind::Unavailable);
        assert!(questions.state.lock().asked.is_empty());
    }
}

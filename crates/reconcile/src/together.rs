//! Calls that come while others are worked on are worked on together, next.

use std::collections::VecDeque;
use std::future::Future;

use parking_lot::Mutex;
use tokio::sync::oneshot::{self, error::TryRecvError};

/// Work of which much at once costs little more than one: calls wait while a batch is worked on, and are the next batch.
/// A call that comes alone is worked on at once; where calls lately came together, the first gives others a moment to come.
/// There is no task behind it: whoever comes first works for all.
pub struct Together<I, O> {
    waiting: Mutex<VecDeque<(I, oneshot::Sender<O>)>>,
    /// Whoever has it works; how many calls a batch had lately.
    turn: tokio::sync::Mutex<usize>,
    most: usize,
}

/// How often the first of a batch lets what is ready run before it. Callers that were answered together come back one by one:
/// without this, every other batch would be the first of them alone.
const MOMENTS: usize = 4;

impl<I: Clone, O> Together<I, O> {
    /// At most `most` calls in one batch.
    pub fn new(most: usize) -> Self {
        Together { waiting: Mutex::default(), turn: tokio::sync::Mutex::default(), most: most.max(1) }
    }

    /// Has `item` worked on by `work`, which answers one result for each item, in their order. `work` may be another
    /// call's, so all calls have to give the same. Should a call be dropped that worked for others, these begin anew: `work`
    /// may see an item twice.
    pub async fn call<F: Future<Output = Vec<O>>>(&self, item: I, work: impl Fn(Vec<I>) -> F) -> O {
        let mut answered = self.queue(item.clone());
        let mut lately = self.turn.lock().await;
        loop {
            match answered.try_recv() {
                Ok(answer) => return answer,
                Err(TryRecvError::Closed) => answered = self.queue(item.clone()),
                Err(TryRecvError::Empty) => {}
            }
            if *lately > 1 {
                for _ in 0..MOMENTS {
                    tokio::task::yield_now().await;
                }
            }
            let (items, answers): (Vec<I>, Vec<oneshot::Sender<O>>) = {
                let mut waiting = self.waiting.lock();
                let some = waiting.len().min(self.most);
                waiting.drain(..some).unzip()
            };
            *lately = items.len().max(*lately / 2);
            for (answer, to) in work(items).await.into_iter().zip(answers) {
                let _ = to.send(answer);
            }
        }
    }

    fn queue(&self, item: I) -> oneshot::Receiver<O> {
        let (to, answered) = oneshot::channel();
        self.waiting.lock().push_back((item, to));
        answered
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_comes_meanwhile_is_the_next_batch_and_nobody_is_forgotten() {
        let together = Arc::new(Together::<u32, u32>::new(4));
        let batches = Arc::new(Mutex::new(Vec::new()));
        let mut calls = Vec::new();
        for n in 0..10 {
            let (together, batches) = (together.clone(), batches.clone());
            calls.push(tokio::spawn(async move {
                let work = |items: Vec<u32>| {
                    let batches = batches.clone();
                    async move {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                        batches.lock().push(items.clone());
                        items.into_iter().map(|n| n * 2).collect()
                    }
                };
                together.call(n, work).await
            }));
            tokio::task::yield_now().await;
        }
        // The first one works for itself; it is dropped in the middle of that.
        calls.remove(0).abort();
        for (n, call) in calls.into_iter().enumerate() {
            assert_eq!(call.await.unwrap(), (n as u32 + 1) * 2);
        }
        let batches = batches.lock();
        let mut all: Vec<u32> = batches.iter().flatten().copied().collect();
        all.sort_unstable();
        assert_eq!(all, (1..10).collect::<Vec<_>>());
        assert!(batches.len() <= 3, "{batches:?}");
    }

    #[tokio::test]
    async fn who_comes_right_after_the_first_is_waited_for_where_that_happened_before() {
        let together = Arc::new(Together::<u32, usize>::new(16));
        let of_how_many = |items: Vec<u32>| async move {
            tokio::task::yield_now().await;
            vec![items.len(); items.len()]
        };
        let start = |n: u32| {
            let together = together.clone();
            tokio::spawn(async move { together.call(n, of_how_many).await })
        };
        let first: Vec<_> = (0..4).map(start).collect();
        let mut sizes = Vec::new();
        for call in first {
            sizes.push(call.await.unwrap());
        }
        assert_eq!(sizes, [1, 3, 3, 3], "the very first did not know of others");
        // One who comes back a little before the others.
        let early = start(0);
        tokio::task::yield_now().await;
        let late: Vec<_> = (1..4).map(start).collect();
        assert_eq!(early.await.unwrap(), 4);
        for call in late {
            assert_eq!(call.await.unwrap(), 4);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_dropped_call_took_along_is_worked_on_again() {
        let together = Arc::new(Together::<u32, u32>::new(4));
        let slow = |items: Vec<u32>| async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            items
        };
        let start = |n: u32| {
            let together = together.clone();
            tokio::spawn(async move { together.call(n, slow).await })
        };
        let first = start(1);
        tokio::task::yield_now().await;
        let (second, third) = (start(2), start(3));
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert_eq!(first.await.unwrap(), 1);
        // The second works for itself and the third.
        second.abort();
        assert_eq!(third.await.unwrap(), 3);
    }
}

//! Calls that come while others are worked on are worked on together, next.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Work of which much at once costs little more than one: calls wait while a batch is worked on, and are the next batch.
/// A call that comes alone is worked on at once; where calls lately came together, the first waits a moment for as many.
/// There is no task behind it: whoever comes first works for all.
pub struct Together<I, O> {
    line: Arc<Mutex<Line<I, O>>>,
    most: usize,
}

/// How long the first of a batch waits for as many as came lately. Callers that were answered together come back one by one:
/// without this, every other batch would be the first of them alone.
const MOMENT: Duration = Duration::from_millis(1);

struct Line<I, O> {
    waiting: VecDeque<(I, oneshot::Sender<Told<I, O>>)>,
    /// Somebody has the turn.
    taken: bool,
    /// How many calls there were at once.
    lately: usize,
    /// Who has the turn is told when so many wait.
    enough: Option<(usize, oneshot::Sender<()>)>,
}

/// What one who waits is told.
enum Told<I, O> {
    Answer(O),
    Turn(Turn<I, O>),
}

/// The right to work for all who wait. Dropped, it goes to the next in line, also from a channel that nobody reads any more.
struct Turn<I, O>(Option<Arc<Mutex<Line<I, O>>>>);

impl<I, O> Drop for Turn<I, O> {
    fn drop(&mut self) {
        let Some(line) = self.0.take() else { return };
        loop {
            let next = {
                let mut line = line.lock();
                let next = line.waiting.pop_front();
                line.taken = next.is_some();
                next
            };
            let Some((_, to)) = next else { return };
            match to.send(Told::Turn(Turn(Some(Arc::clone(&line))))) {
                // It was dropped while it waited. What came back must not look for the next itself: that would recurse.
                Err(Told::Turn(mut turn)) => turn.0 = None,
                _ => return,
            }
        }
    }
}

impl<I: Clone, O> Together<I, O> {
    /// At most `most` calls in one batch.
    pub fn new(most: usize) -> Self {
        let line = Line { waiting: VecDeque::new(), taken: false, lately: 1, enough: None };
        Together { line: Arc::new(Mutex::new(line)), most: most.max(1) }
    }

    /// Has `item` worked on by `work`, which answers one result for each item, in their order. `work` may be another
    /// call's, so all calls have to give the same. Should a call be dropped that worked for others, these begin anew: `work`
    /// may see an item twice.
    pub async fn call<F: Future<Output = Vec<O>>>(&self, item: I, work: impl Fn(Vec<I>) -> F) -> O {
        loop {
            let told = match self.turn_or_wait(&item) {
                Ok(turn) => Told::Turn(turn),
                Err(told) => match told.await {
                    Ok(told) => told,
                    Err(_dropped) => continue,
                },
            };
            let _turn = match told {
                Told::Answer(answer) => return answer,
                Told::Turn(turn) => turn,
            };
            let (others, answers) = self.gather().await;
            let items = std::iter::once(item.clone()).chain(others).collect();
            let mut results = work(items).await.into_iter();
            self.count(results.len());
            let own = results.next();
            for (result, to) in results.zip(answers) {
                let _ = to.send(Told::Answer(result));
            }
            if let Some(own) = own {
                return own;
            }
        }
    }

    /// Those who are answered now may come back while those who wait are worked for: all of them together are one batch.
    fn count(&self, answered: usize) {
        let mut line = self.line.lock();
        line.lately = line.lately.max((answered + line.waiting.len()).min(self.most));
    }

    fn turn_or_wait(&self, item: &I) -> Result<Turn<I, O>, oneshot::Receiver<Told<I, O>>> {
        let mut line = self.line.lock();
        if !line.taken {
            line.taken = true;
            return Ok(Turn(Some(Arc::clone(&self.line))));
        }
        let (to, told) = oneshot::channel();
        line.waiting.push_back((item.clone(), to));
        if line.enough.as_ref().is_some_and(|(many, _)| line.waiting.len() >= *many)
            && let Some((_, tell)) = line.enough.take()
        {
            let _ = tell.send(());
        }
        Err(told)
    }

    /// Those who are worked for beside the one who has the turn.
    async fn gather(&self) -> (Vec<I>, Vec<oneshot::Sender<Told<I, O>>>) {
        let wait = {
            let mut line = self.line.lock();
            let others = line.lately.min(self.most) - 1;
            (line.waiting.len() < others).then(|| {
                let (tell, told) = oneshot::channel();
                line.enough = Some((others, tell));
                told
            })
        };
        if let Some(told) = wait {
            let _ = tokio::time::timeout(MOMENT, told).await;
        }
        let mut line = self.line.lock();
        let others = line.waiting.len().min(self.most - 1);
        line.lately = (others + 1).max(line.lately / 2);
        line.enough = None;
        line.waiting.drain(..others).unzip()
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

    #[tokio::test(start_paused = true)]
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
    async fn groups_that_take_turns_become_one() {
        let together = Arc::new(Together::<u32, usize>::new(16));
        let work = |items: Vec<u32>| async move {
            tokio::time::sleep(Duration::from_millis(10)).await;
            vec![items.len(); items.len()]
        };
        let caller = |n: u32| {
            let together = together.clone();
            tokio::spawn(async move {
                let mut sizes = Vec::new();
                for _ in 0..8 {
                    sizes.push(together.call(n, work).await);
                }
                sizes
            })
        };
        let mut callers: Vec<_> = (0..3).map(caller).collect();
        tokio::time::sleep(Duration::from_millis(15)).await;
        callers.extend((3..8).map(caller));
        for caller in callers {
            assert_eq!(caller.await.unwrap()[5], 8);
        }
    }

    async fn slow(items: Vec<u32>) -> Vec<u32> {
        tokio::time::sleep(Duration::from_secs(1)).await;
        items
    }

    fn start(together: &Arc<Together<u32, u32>>, n: u32) -> tokio::task::JoinHandle<u32> {
        let together = Arc::clone(together);
        tokio::spawn(async move { together.call(n, slow).await })
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_dropped_call_took_along_is_worked_on_again() {
        let together = Arc::new(Together::<u32, u32>::new(4));
        let start = |n| start(&together, n);
        let first = start(1);
        tokio::task::yield_now().await;
        let (second, third) = (start(2), start(3));
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert_eq!(first.await.unwrap(), 1);
        // The second works for itself and the third.
        second.abort();
        assert_eq!(third.await.unwrap(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_nobody_takes_goes_on() {
        // One at a time, so that each who waits is given the turn.
        let together = Arc::new(Together::<u32, u32>::new(1));
        let start = |n| start(&together, n);
        let ended_while_it_waited = Arc::new(Mutex::new(None::<tokio::task::AbortHandle>));
        let first = tokio::spawn({
            let (together, second) = (together.clone(), ended_while_it_waited.clone());
            async move {
                let answer = together.call(1, slow).await;
                // It has the turn in its channel, and never ran since.
                second.lock().take().unwrap().abort();
                answer
            }
        });
        tokio::task::yield_now().await;
        let (second, third, fourth) = (start(2), start(3), start(4));
        *ended_while_it_waited.lock() = Some(second.abort_handle());
        tokio::task::yield_now().await;
        third.abort();
        assert_eq!(first.await.unwrap(), 1);
        assert!(second.await.unwrap_err().is_cancelled());
        assert_eq!(fourth.await.unwrap(), 4);
        assert_eq!(start(5).await.unwrap(), 5);
    }
}

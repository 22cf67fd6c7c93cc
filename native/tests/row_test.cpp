#include <gtest/gtest.h>
#include <sys/mount.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>
#include <thread>
#include <vector>

#include "child_process.hpp"
#include "forked_child.hpp"
#include "kvcached/futex.hpp"
#include "kvcached/page_table.hpp"
#include "temporary_directory.hpp"

namespace kvcached {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;
using std::chrono::seconds;

RowFacts facts_for(std::uint32_t extents) {
  RowFacts facts;
  facts.rank = 3;
  facts.num_blocks = extents * 4;
  facts.blocks_per_extent = 4;
  facts.num_extents = extents;
  facts.pinned_extents = 1;
  facts.granule_bytes = 65536;
  std::strncpy(facts.engine, "an engine", sizeof facts.engine - 1);
  return facts;
}

class RowTest : public testing::Test {
 protected:
  Status create(std::unique_ptr<Row>* row, std::uint32_t extents = 10) {
    return Row::create(path, facts_for(extents), row, &error);
  }
  Status attach(std::unique_ptr<Row>* row) { return Row::attach(path, row, &error); }

  TemporaryDirectory directory;
  std::string path = directory / "engine.0.row";
  std::string error;
};

TEST_F(RowTest, AnAttachedRowShowsTheCreatorsFactsAndMemory) {
  std::unique_ptr<Row> worker;
  std::unique_ptr<Row> scheduler;
  ASSERT_EQ(create(&worker), Status::ok) << error;
  ASSERT_EQ(attach(&scheduler), Status::ok) << error;
  EXPECT_EQ(scheduler->facts().pid, static_cast<std::uint32_t>(::getpid()));
  EXPECT_EQ(scheduler->facts().rank, 3u);
  EXPECT_EQ(scheduler->facts().num_blocks, 40u);
  EXPECT_STREQ(scheduler->facts().engine, "an engine");
  for (std::uint32_t extent = 0; extent < 10; ++extent) {
    EXPECT_EQ(scheduler->state(extent), ExtentState::absent);
    EXPECT_EQ(scheduler->fence(extent), 0u);
  }
  scheduler->state(9) = ExtentState::wanted;
  scheduler->fence(9) = 77;
  worker->header().held_bytes = 12345;
  EXPECT_EQ(worker->state(9), ExtentState::wanted);
  EXPECT_EQ(worker->fence(9), 77u);
  EXPECT_EQ(scheduler->header().held_bytes, 12345u);
}

TEST_F(RowTest, ARowOfALiveOwnerIsBusy) {
  ChildProcess owner([&](auto stay) {
    std::unique_ptr<Row> row;
    stay(static_cast<int>(create(&row)));
  });
  ASSERT_EQ(owner.report(), static_cast<int>(Status::ok));
  std::unique_ptr<Row> row;
  EXPECT_EQ(create(&row), Status::busy);
  EXPECT_EQ(row, nullptr);
  EXPECT_NE(error.find(path), std::string::npos);
  EXPECT_TRUE(std::filesystem::exists(path));
  ASSERT_EQ(attach(&row), Status::ok) << error;
  EXPECT_TRUE(row->owner_alive());
}

TEST_F(RowTest, ARowInTheSameProcessIsBusyToo) {
  std::unique_ptr<Row> first;
  std::unique_ptr<Row> second;
  ASSERT_EQ(create(&first), Status::ok);
  EXPECT_EQ(create(&second), Status::busy);
  EXPECT_TRUE(std::filesystem::exists(path));
}

TEST_F(RowTest, ARowOfAKilledOwnerIsRefusedToReadersAndReplaced) {
  ChildProcess owner([&](auto stay) {
    std::unique_ptr<Row> row;
    stay(static_cast<int>(create(&row)));
  });
  ASSERT_EQ(owner.report(), static_cast<int>(Status::ok));
  std::unique_ptr<Row> before;
  ASSERT_EQ(attach(&before), Status::ok) << error;
  owner.kill();
  EXPECT_FALSE(before->owner_alive());
  std::unique_ptr<Row> row;
  EXPECT_EQ(attach(&row), Status::not_found);
  EXPECT_NE(error.find("gone"), std::string::npos);
  ASSERT_EQ(create(&row, 20), Status::ok) << error;
  EXPECT_EQ(row->facts().num_extents, 20u);
  EXPECT_EQ(row->header().ring_tail, 0u);
  EXPECT_FALSE(before->owner_alive()) << "the new row is another file";
}

TEST_F(RowTest, ARowIsDeadWithItsOwnerThoughAForkedChildLivesOn) {
  ChildProcess owner([&](auto stay) {
    std::unique_ptr<Row> row;
    if (create(&row) != Status::ok) return;
    stay(fork_idle_process());
  });
  const pid_t grandchild = owner.report();
  ASSERT_GT(grandchild, 0);
  std::unique_ptr<Row> row;
  ASSERT_EQ(attach(&row), Status::ok) << error;
  owner.kill();
  EXPECT_FALSE(row->owner_alive());
  std::unique_ptr<Row> next;
  EXPECT_EQ(create(&next), Status::ok) << error;
  ::kill(grandchild, SIGKILL);
}

TEST_F(RowTest, TheCreatorRemovesItsFileAndAReaderDoesNot) {
  std::unique_ptr<Row> worker;
  std::unique_ptr<Row> scheduler;
  ASSERT_EQ(create(&worker), Status::ok);
  ASSERT_EQ(attach(&scheduler), Status::ok);
  scheduler.reset();
  EXPECT_TRUE(std::filesystem::exists(path));
  worker.reset();
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST_F(RowTest, TheCreatorDoesNotRemoveAFileThatTookItsPlace) {
  std::unique_ptr<Row> worker;
  ASSERT_EQ(create(&worker), Status::ok);
  std::filesystem::remove(path);
  std::ofstream(path) << "another";
  worker.reset();
  EXPECT_TRUE(std::filesystem::exists(path));
}

TEST_F(RowTest, AForkedChildThatDropsItsRowHarmsNobody) {
  std::unique_ptr<Row> row;
  ASSERT_EQ(create(&row), Status::ok);
  EXPECT_TRUE(succeeded(run_in_child([&] {
    row.reset();
    return 0;
  })));
  EXPECT_TRUE(std::filesystem::exists(path));
  row->state(1) = ExtentState::wanted;
  std::unique_ptr<Row> reader;
  EXPECT_EQ(attach(&reader), Status::ok) << error;
}

TEST_F(RowTest, WhatIsNotThereCannotBeAttachedTo) {
  std::unique_ptr<Row> row;
  EXPECT_EQ(attach(&row), Status::not_found);
  EXPECT_NE(error.find(path), std::string::npos);
}

TEST_F(RowTest, ARowCannotBeMadeWhereThereIsNoDirectory) {
  std::unique_ptr<Row> row;
  path = directory / "missing/engine.row";
  EXPECT_EQ(create(&row), Status::not_found);
  EXPECT_NE(error.find(path), std::string::npos);
}

TEST_F(RowTest, AnotherVersionsRowIsUnsupported) {
  std::unique_ptr<Row> worker;
  ASSERT_EQ(create(&worker), Status::ok);
  const auto refused = [&] {
    std::unique_ptr<Row> row;
    const Status status = attach(&row);
    EXPECT_EQ(row, nullptr);
    EXPECT_NE(error.find(path), std::string::npos);
    return status == Status::unsupported;
  };
  worker->header().format += 1;
  EXPECT_TRUE(refused());
  worker->header().format -= 1;
  worker->header().magic += 1;
  EXPECT_TRUE(refused());
  worker->header().magic -= 1;
  std::unique_ptr<Row> row;
  EXPECT_EQ(attach(&row), Status::ok) << error;
  row.reset();
  std::filesystem::resize_file(path, std::filesystem::file_size(path) + 64);
  EXPECT_TRUE(refused());
}

TEST_F(RowTest, AShortOrForeignFileIsUnsupported) {
  FileLock owner;
  ASSERT_EQ(FileLock::create(path, &owner), Status::ok);
  std::unique_ptr<Row> row;
  EXPECT_EQ(attach(&row), Status::unsupported);
  std::filesystem::resize_file(path, 1 << 20);
  EXPECT_EQ(attach(&row), Status::unsupported);
}

TEST_F(RowTest, AFullFileSystemIsAnErrorAndLeavesNoFile) {
  if (::mount("tmpfs", directory.path().c_str(), "tmpfs", 0, "size=64k") != 0) {
    GTEST_SKIP() << "cannot mount a small tmpfs: " << std::strerror(errno);
  }
  std::unique_ptr<Row> row;
  EXPECT_EQ(create(&row, 100'000), Status::out_of_memory);
  EXPECT_NE(error.find("no room"), std::string::npos);
  EXPECT_FALSE(std::filesystem::exists(path));
  EXPECT_EQ(create(&row, 10), Status::ok) << error;
  row.reset();
  ::umount(directory.path().c_str());
}

TEST_F(RowTest, OnlyTheRowsOfDeadProcessesAreRemoved) {
  std::unique_ptr<Row> mine;
  ASSERT_EQ(create(&mine), Status::ok);
  const std::string living = directory / "living.row";
  const std::string dead = directory / "dead.row";
  const std::string other = directory / "notes.txt";
  std::ofstream(other) << "not a row";
  ChildProcess survivor([&](auto stay) {
    std::unique_ptr<Row> row;
    stay(static_cast<int>(Row::create(living, facts_for(4), &row, &error)));
  });
  ChildProcess victim([&](auto stay) {
    std::unique_ptr<Row> row;
    stay(static_cast<int>(Row::create(dead, facts_for(4), &row, &error)));
  });
  ASSERT_EQ(survivor.report(), static_cast<int>(Status::ok));
  ASSERT_EQ(victim.report(), static_cast<int>(Status::ok));
  EXPECT_TRUE(remove_dead_rows(directory.path()).empty());
  victim.kill();
  EXPECT_EQ(remove_dead_rows(directory.path()), std::vector<std::string>{dead});
  EXPECT_FALSE(std::filesystem::exists(dead));
  for (const std::string& kept : {path, living, other}) EXPECT_TRUE(std::filesystem::exists(kept));
  EXPECT_TRUE(remove_dead_rows(directory / "missing").empty());
}

TEST_F(RowTest, TheRingKeepsOrderAndWrapsAround) {
  std::unique_ptr<Row> worker;
  std::unique_ptr<Row> scheduler;
  ASSERT_EQ(create(&worker, 5), Status::ok);
  ASSERT_EQ(attach(&scheduler), Status::ok);
  Row::Request request;
  EXPECT_FALSE(worker->pop(&request));
  std::uint32_t sent = 0;
  std::uint32_t received = 0;
  // Five fit, one for every extent; many times around, with every filling.
  for (std::uint32_t round = 0; round < 100; ++round) {
    for (std::uint32_t n = 0; n < round % 5 + 1; ++n, ++sent) {
      scheduler->push({sent, 0xffffffffU - sent});
    }
    while (worker->pop(&request)) {
      EXPECT_EQ(request.first, received);
      EXPECT_EQ(request.count, 0xffffffffU - received);
      ++received;
    }
    ASSERT_EQ(received, sent);
  }
}

// Plays the pager: sleeps until there is something in the ring, and answers it.
bool serve_one(Row& row, Row::Request* request) {
  const auto deadline = Clock::now() + seconds(20);
  RowHeader& header = row.header();
  while (Clock::now() < deadline) {
    const std::uint32_t seen = header.doorbell;
    if (row.pop(request)) {
      row.state(request->first) = ExtentState::committed;
      row.answer();
      return true;
    }
    header.pager_sleeps = 1;
    if (header.doorbell == seen) futex_wait(header.doorbell, seen, seconds(20));
    header.pager_sleeps = 0;
  }
  return false;
}

// Plays the pool: asks once the other side sleeps, and sleeps until the answer.
void ask_and_wait(Row& row) {
  RowHeader& header = row.header();
  const auto begin = Clock::now();
  while (header.pager_sleeps == 0 && Clock::now() < begin + seconds(5)) {
    std::this_thread::sleep_for(milliseconds(1));
  }
  std::this_thread::sleep_for(milliseconds(20));
  row.state(7) = ExtentState::wanted;
  header.answer_awaited = 1;
  const std::uint32_t seen = header.answers;
  const auto asked = Clock::now();
  row.push({7, 1});
  while (row.state(7) != ExtentState::committed && Clock::now() < asked + seconds(10)) {
    futex_wait(header.answers, seen, seconds(10));
  }
  header.answer_awaited = 0;
  EXPECT_EQ(row.state(7), ExtentState::committed);
  EXPECT_LT(Clock::now() - asked, seconds(5)) << "nobody was woken";
}

TEST_F(RowTest, TheDoorbellWakesAnotherThreadAndItsAnswerWakesUs) {
  std::unique_ptr<Row> worker;
  std::unique_ptr<Row> scheduler;
  ASSERT_EQ(create(&worker), Status::ok);
  ASSERT_EQ(attach(&scheduler), Status::ok);
  Row::Request request;
  bool served = false;
  std::thread pager([&] { served = serve_one(*worker, &request); });
  ask_and_wait(*scheduler);
  pager.join();
  EXPECT_TRUE(served);
  EXPECT_EQ(request.first, 7u);
}

TEST_F(RowTest, TheDoorbellWakesAnotherProcessAndItsAnswerWakesUs) {
  // The worker's process forks, and only then makes its row.
  const pid_t child = ::fork();
  if (child == 0) {
    std::unique_ptr<Row> row;
    Row::Request request;
    ::_exit(create(&row) == Status::ok && serve_one(*row, &request) && request.first == 7 ? 0 : 1);
  }
  std::unique_ptr<Row> row;
  const auto deadline = Clock::now() + seconds(10);
  while (attach(&row) != Status::ok && Clock::now() < deadline) {
    std::this_thread::sleep_for(milliseconds(2));
  }
  ASSERT_NE(row, nullptr) << error;
  ask_and_wait(*row);
  int status = -1;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(succeeded(status));
}

TEST(FutexTest, ASleepEndsAtOnceWhereTheWordHasChangedAndAtItsTimeoutWhereNot) {
  const std::atomic<std::uint32_t> word{5};
  const auto begin = Clock::now();
  futex_wait(word, 4, seconds(20));
  EXPECT_LT(Clock::now() - begin, seconds(10));
  futex_wait(word, 5, milliseconds(30));
  EXPECT_GE(Clock::now() - begin, milliseconds(25));
}

}  // namespace
}  // namespace kvcached

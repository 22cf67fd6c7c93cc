#include "kvcached/file_lock.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <utility>
#include <vector>

#include "child_process.hpp"
#include "forked_child.hpp"
#include "temporary_directory.hpp"

namespace kvcached {
namespace {

class FileLockTest : public testing::Test {
 protected:
  // Whether somebody holds the lock, seen from outside.
  bool is_held() const {
    FileLock other;
    return FileLock::open(path, &other) == Status::ok && other.held_elsewhere();
  }

  TemporaryDirectory directory;
  std::string path = directory / "lock";
};

TEST_F(FileLockTest, ACreatedFileIsLockedAndForItsUserAlone) {
  FileLock lock;
  ASSERT_EQ(FileLock::create(path, &lock), Status::ok);
  EXPECT_TRUE(is_held());
  EXPECT_FALSE(lock.held_elsewhere()) << "our own lock is not somebody else's";
  struct stat info{};
  ASSERT_EQ(::stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777U, 0600U);
}

TEST_F(FileLockTest, AFileThatExistsIsNotCreatedAgain) {
  std::ofstream(path) << "here";
  FileLock lock;
  EXPECT_EQ(FileLock::create(path, &lock), Status::busy);
  EXPECT_TRUE(std::filesystem::exists(path));
}

TEST_F(FileLockTest, AFileThatDoesNotExistIsNotFound) {
  FileLock lock;
  EXPECT_EQ(FileLock::open(path, &lock), Status::not_found);
  EXPECT_LT(lock.fd(), 0);
}

TEST_F(FileLockTest, ALinkIsNotFollowed) {
  std::ofstream(directory / "target") << "here";
  std::filesystem::create_symlink(directory / "target", path);
  FileLock lock;
  EXPECT_NE(FileLock::open(path, &lock), Status::ok);
  EXPECT_EQ(FileLock::create(path, &lock), Status::busy);
}

TEST_F(FileLockTest, OneOfTwoGetsTheLock) {
  FileLock first;
  FileLock second;
  ASSERT_EQ(FileLock::create(path, &first), Status::ok);
  ASSERT_EQ(FileLock::open(path, &second), Status::ok);
  EXPECT_EQ(second.try_lock(), Status::busy);
  first = FileLock();
  EXPECT_EQ(second.try_lock(), Status::ok);
}

TEST_F(FileLockTest, TheLockMovesWithItsObject) {
  FileLock first;
  ASSERT_EQ(FileLock::create(path, &first), Status::ok);
  FileLock second(std::move(first));
  first = FileLock();
  EXPECT_TRUE(is_held());
  FileLock third;
  third = std::move(second);
  EXPECT_TRUE(is_held());
  third = FileLock();
  EXPECT_FALSE(is_held());
}

TEST_F(FileLockTest, ADirectoryThatMayNotBeWrittenIsNotCalledBusy) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs a second user, and so root";
  std::filesystem::permissions(directory.path(), std::filesystem::perms::owner_all);
  EXPECT_TRUE(succeeded(run_in_child([&] {
    if (::seteuid(65534) != 0) return 1;
    FileLock lock;
    return FileLock::create(path, &lock) == Status::driver_error ? 0 : 2;
  })));
}

TEST_F(FileLockTest, AFileThatWasReplacedIsNoLongerCurrent) {
  FileLock lock;
  ASSERT_EQ(FileLock::create(path, &lock), Status::ok);
  EXPECT_TRUE(lock.is_current(path));
  std::filesystem::remove(path);
  EXPECT_FALSE(lock.is_current(path));
  std::ofstream(path) << "another";
  EXPECT_FALSE(lock.is_current(path));
}

TEST_F(FileLockTest, TheLockGoesWithAKilledProcess) {
  ChildProcess owner([&](auto stay) {
    FileLock lock;
    stay(static_cast<int>(FileLock::create(path, &lock)));
  });
  ASSERT_EQ(owner.report(), static_cast<int>(Status::ok));
  EXPECT_TRUE(is_held());
  owner.kill();
  EXPECT_FALSE(is_held());
}

TEST_F(FileLockTest, TheLockGoesWithItsOwnerThoughAForkedChildLivesOn) {
  ChildProcess owner([&](auto stay) {
    FileLock lock;
    if (FileLock::create(path, &lock) != Status::ok) return;
    stay(fork_idle_process());
  });
  const pid_t grandchild = owner.report();
  ASSERT_GT(grandchild, 0);
  EXPECT_TRUE(is_held());
  owner.kill();
  EXPECT_EQ(::kill(grandchild, 0), 0) << "the grandchild was to live on";
  EXPECT_FALSE(is_held());
  ::kill(grandchild, SIGKILL);
}

TEST_F(FileLockTest, AForkedChildClosesItsCopyAndNothingElse) {
  FileLock lock;
  ASSERT_EQ(FileLock::create(path, &lock), Status::ok);
  EXPECT_TRUE(succeeded(run_in_child([&] {
    if (::fcntl(lock.fd(), F_GETFD) != -1) return 1;
    // The number is free now; the object of the parent must not close what takes it.
    const int other = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (other != lock.fd()) return 2;
    lock = FileLock();
    return ::fcntl(other, F_GETFD) == -1 ? 3 : 0;
  })));
  EXPECT_TRUE(is_held());
}

TEST_F(FileLockTest, MoreLocksThanAForkedChildCouldCloseAreRefused) {
  const auto open_files = [] {
    std::size_t count = 0;
    for ([[maybe_unused]] const auto& entry :
         std::filesystem::directory_iterator("/proc/self/fd")) {
      ++count;
    }
    return count;
  };
  const std::size_t before = open_files();
  std::vector<FileLock> locks(300);
  std::size_t made = 0;
  Status status = Status::ok;
  while (made < locks.size() && status == Status::ok) {
    status = FileLock::create(directory / std::to_string(made), &locks[made]);
    if (status == Status::ok) ++made;
  }
  EXPECT_EQ(status, Status::out_of_memory);
  EXPECT_GE(made, 200u);
  EXPECT_FALSE(std::filesystem::exists(directory / std::to_string(made)));
  locks[0] = FileLock();
  EXPECT_EQ(FileLock::create(path, &locks[0]), Status::ok) << "there is room again";
  locks.clear();
  EXPECT_EQ(open_files(), before);
}

}  // namespace
}  // namespace kvcached

"""A playbook on two hosts by two of its forks."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

PLAYBOOK = """
- hosts: all
  gather_facts: false
  connection: local
  tasks:
    - name: first
      ansible.builtin.command: echo hello from {{ inventory_hostname }}
      register: said
      changed_when: false
    - name: second
      ansible.builtin.assert:
        that: said.stdout == "hello from " + inventory_hostname
    - name: third
      ansible.builtin.fail:
        msg: on purpose
      when: inventory_hostname == "two"
      ignore_errors: true
"""

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        book = Path(folder, "book.yml")
        book.write_text(PLAYBOOK)
        command = [sys.executable, "-m", "ansible.cli.playbook", "-i", "one,two", "-f", "2", str(book)]
        command += ["-e", f"ansible_python_interpreter={sys.executable}"]
        environment = os.environ | {"ANSIBLE_LOCAL_TEMP": folder, "ANSIBLE_REMOTE_TEMP": folder, "HOME": folder}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        print("exit status", done.returncode)
        recap = done.stdout.partition("PLAY RECAP")[2].splitlines()[1:]
        print(*sorted(" ".join(line.split()) for line in recap if line.strip()), sep="\n")
        if done.returncode:
            print(done.stdout, done.stderr, file=sys.stderr)

"use strict";
// What waits looks again; a file is sent with its progress shown. All else is plain HTML.
const waiting = document.querySelector("[data-reload]");
if (waiting) setTimeout(() => location.reload(), Number(waiting.dataset.reload));

const drop = document.getElementById("drop");
if (drop) {
  const file = document.getElementById("file");
  const said = document.getElementById("said");
  const sent = document.getElementById("sent");
  const button = drop.querySelector("button");

  const tell = (words) => {
    drop.querySelector(".sent").hidden = false;
    said.textContent = words;
  };

  const send = (chosen) => {
    if (chosen.size > Number(drop.dataset.most)) {
      tell("The file is larger than the board takes; canal annotate has no bound.");
      return;
    }
    const request = new XMLHttpRequest();
    request.open("POST", "/drop");
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.setRequestHeader("X-CSRF", drop.dataset.csrf);
    request.setRequestHeader("X-File-Name", encodeURIComponent(chosen.name));
    request.setRequestHeader("X-Model", document.getElementById("model").value);
    request.upload.onprogress = (event) => {
      sent.value = (100 * event.loaded) / event.total;
      tell(`Sent ${Math.round(sent.value)} %`);
    };
    request.onload = () => {
      if (request.status === 201) {
        location.assign(request.getResponseHeader("Location"));
        return;
      }
      button.disabled = false;
      tell(request.responseText);
    };
    request.onerror = () => {
      button.disabled = false;
      tell("The connection broke: send it again.");
    };
    button.disabled = true;
    tell("Sending");
    request.send(chosen);
  };

  drop.addEventListener("submit", (event) => {
    event.preventDefault();
    if (file.files.length) send(file.files[0]);
  });
  for (const name of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", name === "dragover");
      if (name === "drop" && event.dataTransfer.files.length) {
        file.files = event.dataTransfer.files;
        send(event.dataTransfer.files[0]);
      }
    });
  }
}

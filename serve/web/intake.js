// The three ways in: drop, choose, paste.

/**
 * @param {HTMLInputElement} input the file field.
 * @param {{take: (file: File) => void, refuse: (message: string) => void}} handlers
 */
export function watchIntake(input, { take, refuse }) {
  const receive = (files, empty) => {
    const file = [...files].find((candidate) => candidate.type.startsWith("image/")) ?? files[0];
    if (file) take(file);
    else if (empty) refuse(empty);
  };

  input.addEventListener("change", () => {
    receive([...input.files]);
    input.value = ""; // the same file again counts as a change
  });

  // dragenter and dragleave come for every element on the way; the page is left when none is entered in turn.
  let depth = 0;
  const dragging = (change) => {
    depth = Math.max(0, change);
    document.body.classList.toggle("dragging", depth > 0);
  };
  addEventListener("dragenter", () => dragging(depth + 1));
  addEventListener("dragleave", () => dragging(depth - 1));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    dragging(0);
    receive([...event.dataTransfer.files], "There is no file in what was dropped. Save the image first, or copy and paste it.");
  });

  addEventListener("paste", (event) => {
    if (event.target instanceof HTMLInputElement && event.target.type !== "file") return; // a key, say
    receive([...event.clipboardData.files], "There is no image in the clipboard.");
  });
}

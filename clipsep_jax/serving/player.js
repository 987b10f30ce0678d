// Two players, of a sound and of its mixture, that run as one: the switch exchanges what is heard at the same instant.
const MOST_DRIFT_SECONDS = 0.03;

class ClipsepPlayer extends HTMLElement {
  connectedCallback() {
    if (this.mixture) return;
    const sound = this.querySelector("audio");
    const mixture = new Audio(this.dataset.mixture);
    mixture.preload = "metadata";
    mixture.muted = true;
    this.mixture = mixture;
    const align = () => {
      if (Math.abs(mixture.currentTime - sound.currentTime) > MOST_DRIFT_SECONDS) mixture.currentTime = sound.currentTime;
    };
    sound.addEventListener("play", () => {
      document.querySelectorAll("clipsep-player audio").forEach((other) => other !== sound && other.pause());
      align();
      mixture.play();
    });
    sound.addEventListener("pause", () => mixture.pause());
    sound.addEventListener("seeked", align);
    sound.addEventListener("timeupdate", () => { if (sound.muted || !mixture.muted) align(); });
    sound.addEventListener("ratechange", () => { mixture.playbackRate = sound.playbackRate; });
    const button = document.createElement("button");
    button.type = "button";
    button.className = "switch";
    button.textContent = "Hear the mixture";
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => {
      const wasPressed = button.getAttribute("aria-pressed") === "true";
      align();
      mixture.muted = wasPressed;
      mixture.volume = sound.volume;
      sound.muted = !wasPressed;
      button.setAttribute("aria-pressed", String(!wasPressed));
    });
    this.append(button);
    const peaks = this.querySelector(".peaks");
    peaks.addEventListener("click", (event) => {
      const box = peaks.getBoundingClientRect();
      if (sound.duration) sound.currentTime = ((event.clientX - box.left) / box.width) * sound.duration;
    });
  }

  disconnectedCallback() {
    this.querySelector("audio").pause();
    this.mixture.pause();
  }
}

customElements.define("clipsep-player", ClipsepPlayer);

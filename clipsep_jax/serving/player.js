// Two players, of a sound and of its mixture, that run as one: the switch exchanges which of them is heard.
const MOST_DRIFT_SECONDS = 0.3; // beyond which the one that is not heard jumps; below, it goes a little faster or slower
const MOST_HURRY = 0.1;

class ClipsepPlayer extends HTMLElement {
  connectedCallback() {
    if (this.mixture) return;
    this.rate = 1; // as the listener chose it
    this.sound = this.querySelector("audio");
    this.mixture = new Audio(this.dataset.mixture);
    this.mixture.preload = "metadata";
    this.mixture.muted = true;
    this.append(this.makeSwitch());
    this.sound.addEventListener("play", () => {
      document.querySelectorAll("clipsep-player audio").forEach((other) => other !== this.sound && other.pause());
      this.mixture.currentTime = this.sound.currentTime;
      this.mixture.play();
    });
    this.sound.addEventListener("pause", () => this.mixture.pause());
    this.sound.addEventListener("seeked", () => {
      if (Math.abs(this.drift()) > MOST_DRIFT_SECONDS) this.mixture.currentTime = this.sound.currentTime;
    });
    this.sound.addEventListener("timeupdate", () => this.follow());
    this.sound.addEventListener("volumechange", () => {
      this.mixture.volume = this.sound.volume;
      if (!this.sound.muted) this.hear(false);
    });
    const peaks = this.querySelector(".peaks");
    peaks.addEventListener("click", (event) => {
      const box = peaks.getBoundingClientRect();
      if (this.sound.duration) this.sound.currentTime = ((event.clientX - box.left) / box.width) * this.sound.duration;
    });
  }

  disconnectedCallback() {
    this.sound.pause();
    this.mixture.pause();
  }

  drift() {
    return this.mixture.currentTime - this.sound.currentTime;
  }

  // The one that nobody hears keeps beside the other.
  follow() {
    if (this.sound.paused) return;
    const [heard, other] = this.sound.muted ? [this.mixture, this.sound] : [this.sound, this.mixture];
    const ahead = other.currentTime - heard.currentTime;
    if (!this.sound.muted) this.rate = this.sound.playbackRate;
    heard.playbackRate = this.rate;
    if (Math.abs(ahead) > MOST_DRIFT_SECONDS) other.currentTime = heard.currentTime;
    else other.playbackRate = this.rate * (1 - Math.max(-MOST_HURRY, Math.min(MOST_HURRY, 2 * ahead)));
  }

  hear(mixture) {
    this.mixture.muted = !mixture;
    this.sound.muted = mixture;
    this.mixture.playbackRate = this.sound.playbackRate = this.rate;
    this.querySelector(".switch").setAttribute("aria-pressed", String(mixture));
  }

  makeSwitch() {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "switch";
    button.textContent = "Hear the mixture";
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => this.hear(button.getAttribute("aria-pressed") !== "true"));
    return button;
  }
}

customElements.define("clipsep-player", ClipsepPlayer);
